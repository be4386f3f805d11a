"""The checkpoints fluxserve knows by name: plain data, no torch, so the node may read it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

Family = Literal["flux"]
Variant = Literal["dev", "schnell", "krea", "srpo"]

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One checkpoint.

    Args:
        name: what users type after `--model` and what reports show.
        source: a diffusers folder, a Hugging Face repo id, or `random:` + a repo's architecture name.
        family: which loader and runner it takes.
        variant: which of fal's endpoints it may answer for (see `server.api.endpoints`).
        revision: commit or tag of the repo; None takes the default branch.
        max_sequence_length: T5 tokens a prompt is padded to.
        max_pixels: largest width x height that is served; the default is the largest size of fal's ultra table.
        default_steps, default_guidance: for `generate` and the OpenAI facade; endpoints have their own.
        licence: shown by `models`; `gated` repos need a token and an accepted licence.
    """

    name: str
    source: str
    family: Family = "flux"
    variant: Variant = "dev"
    revision: str | None = None
    max_sequence_length: int = 512
    max_pixels: int = 2368 * 1792
    default_steps: int = 28
    default_guidance: float = 3.5
    licence: str = "unknown"
    gated: bool = False
    summary: str = ""


_SPECS = (
    ModelSpec(
        name="flux-shapes",
        source=str(_HERE / "shapes" / "flux-shapes"),
        max_sequence_length=32,
        licence="Apache-2.0",
        summary="embedded: coloured shapes, a few megabytes, runs on a CPU",
    ),
    ModelSpec(
        name="flux-shapes-schnell",
        source=str(_HERE / "shapes" / "flux-shapes-schnell"),
        variant="schnell",
        max_sequence_length=32,
        default_steps=4,
        licence="Apache-2.0",
        summary="the same for 1 to 4 steps, without guidance; shares all but the transformer with it",
    ),
    ModelSpec(
        name="FLUX.1-dev",
        source="black-forest-labs/FLUX.1-dev",
        licence="FLUX.1 [dev] Non-Commercial",
        gated=True,
        summary="12 B parameters, 34 GB in bfloat16",
    ),
    ModelSpec(
        name="FLUX.1-schnell",
        source="black-forest-labs/FLUX.1-schnell",
        variant="schnell",
        max_sequence_length=256,
        default_steps=4,
        licence="Apache-2.0",
        gated=True,
        summary="12 B parameters, 1 to 4 steps",
    ),
    ModelSpec(
        name="FLUX.1-Krea-dev",
        source="black-forest-labs/FLUX.1-Krea-dev",
        variant="krea",
        default_guidance=4.5,
        licence="FLUX.1 [dev] Non-Commercial",
        gated=True,
        summary="FLUX.1-dev tuned for photographic looks",
    ),
    ModelSpec(
        name="random:FLUX.1-dev",
        source="random:FLUX.1-dev",
        licence="none (random weights)",
        summary="the full architecture with random weights made on the device, for benchmarks",
    ),
    ModelSpec(
        name="random:FLUX.1-schnell",
        source="random:FLUX.1-schnell",
        variant="schnell",
        max_sequence_length=256,
        default_steps=4,
        licence="none (random weights)",
        summary="the same, without guidance embedding",
    ),
)

REGISTRY: dict[str, ModelSpec] = {spec.name: spec for spec in _SPECS}

TINY = ModelSpec(
    name="random:tiny",
    source="random:tiny",
    max_sequence_length=16,
    max_pixels=1024 * 1024,
    default_steps=4,
    licence="none (random weights)",
    summary="a FLUX of a few thousand random weights, for tests; not listed",
)


class UnknownModelError(ValueError):
    """The argument is no registry name, no diffusers folder and no repo id."""


def resolve(argument: str) -> ModelSpec:
    """The spec that a `--model` argument means: a registry name, a diffusers folder, or `owner/repo`.

    Raises: UnknownModelError with the known names in the message.
    """
    if argument in REGISTRY:
        return REGISTRY[argument]
    if argument == TINY.name:
        return TINY
    by_source = {spec.source: spec for spec in _SPECS}
    if argument in by_source:
        return by_source[argument]
    folder = Path(argument).expanduser()
    if (folder / "model_index.json").is_file():
        return ModelSpec(name=folder.resolve().name, source=str(folder.resolve()))
    if argument.count("/") == 1 and not folder.exists() and not argument.startswith((".", "/", "~")):
        name = argument.split("/")[1]
        variant: Variant = "schnell" if "schnell" in name.lower() else "dev"
        return replace(ModelSpec(name=name, source=argument), variant=variant)
    raise UnknownModelError(
        f"unknown model {argument!r}: give one of {', '.join(REGISTRY)}, a folder with a model_index.json, "
        "or a Hugging Face id such as owner/repo"
    )
