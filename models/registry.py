"""The checkpoints fluxserve knows by name: plain data, no torch, so the node may read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

Family = Literal["flux", "flux2", "flux3", "sdxl"]
Variant = Literal[
    "dev", "schnell", "krea", "srpo", "kontext", "fill", "canny", "depth", "redux", "controlnet", "depth-estimator",
    "klein-4b", "klein-9b", "klein-base-4b", "klein-base-9b", "flux2-dev", "flux2-turbo",
    "flux3-klein", "flux3-klein-base",
    "sdxl", "lightning", "playground",
]  # fmt: skip

AUXILIARIES: tuple[Variant, ...] = ("redux", "controlnet", "depth-estimator")
"""Variants that never draw by themselves: their weights serve requests that another checkpoint draws."""

_HERE = Path(__file__).parent

EMBEDDED_LORAS = _HERE / "shapes" / "loras"
"""Adapters of the embedded model, as its folder's names: outline."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One checkpoint.

    Args:
        name: what users type after `--model` and what reports show.
        source: a diffusers folder, a Hugging Face repo id, `random:` + a repo's architecture name, or `fake:` + the
            options of an engine that only pretends (see `models.fake`).
        family: which loader and runner it takes.
        variant: which of fal's endpoints it may answer for (see `server.api.endpoints`).
        revision: commit or tag of the repo; None takes the default branch.
        max_sequence_length: tokens a prompt is padded to (T5's, of FLUX.2 Qwen3's).
        max_pixels: largest width x height that is served; the default is the largest size of fal's ultra table.
        default_steps, default_guidance: for `generate` and the OpenAI facade; endpoints have their own.
        licence: shown by `models`; `gated` repos need a token and an accepted licence.
        distilled_steps: the one number of steps that it was distilled for; None for a checkpoint that draws in any.
        base: the checkpoint that brings this one along: it is there, on demand, wherever that one is served.
        native_pixels: width x height it draws best; larger pictures are worth two phases.
        picture_tokens: of a redux prior: tokens that it makes of one picture.
        transformer: a single file that takes the place of the source's transformer.
        adapter: a LoRA's file that is worked into the transformer as it is loaded, so that every request has it.
        folders: where a single file's companions are sought besides around it.
        keeps_reference_size: references are seen at the size of the output, as it was trained, instead of at the
            nearest of FLUX.1 Kontext's own sizes, or at FLUX.2's megapixel.
        fetches: whether what is not on this machine may be downloaded to load it.
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
    distilled_steps: int | None = None
    base: str | None = None
    native_pixels: int = 1024 * 1024
    picture_tokens: int = 729
    keeps_reference_size: bool = False
    transformer: str | None = None
    adapter: str | None = None
    folders: tuple[str, ...] = ()
    fetches: bool = True

    @property
    def file(self) -> Path | None:
        """The single file that it is drawn from; None for a folder, a repository or random weights."""
        if self.transformer is not None:
            return Path(self.transformer)
        return Path(self.source) if Path(self.source).is_absolute() and Path(self.source).is_file() else None

    @property
    def replaced(self) -> str | None:
        """The part of the source whose place a single file takes."""
        if self.transformer is None:
            return None
        return "unet" if self.family == "sdxl" else "transformer"

    @property
    def draws(self) -> bool:
        """Whether it can draw by itself."""
        return self.variant not in AUXILIARIES

    @property
    def is_fake(self) -> bool:
        """Whether there are no weights, and an engine that only pretends to draw."""
        return self.source.startswith("fake:")

    @property
    def is_embedded(self) -> bool:
        """Whether it is one of the small checkpoints in this repository."""
        return Path(self.source).parent == _HERE / "shapes"


def _sibling(variant: Variant, summary: str, folder: str = "") -> ModelSpec:
    """A checkpoint of the embedded model's family."""
    name = f"flux-shapes-{folder or variant}"
    return ModelSpec(
        name=name,
        source=str(_HERE / "shapes" / name),
        variant=variant,
        max_sequence_length=32,
        licence="Apache-2.0",
        summary=summary,
        base="flux-shapes",
        picture_tokens=36,
        keeps_reference_size=True,
    )


def _flux1_dev(variant: Variant, guidance: float, summary: str) -> ModelSpec:
    """A checkpoint that Black Forest Labs published beside FLUX.1-dev, under the same licence."""
    name = f"FLUX.1-{variant.title()}-dev"
    return ModelSpec(
        name=name,
        source=f"black-forest-labs/{name}",
        variant=variant,
        default_guidance=guidance,
        licence="FLUX.1 [dev] Non-Commercial",
        gated=True,
        summary=summary,
    )


def _klein(size: str, is_base: bool, licence: str, summary: str) -> ModelSpec:
    """A checkpoint of FLUX.2 [klein]. Args: size: in parameters. is_base: not distilled to few steps."""
    name = f"FLUX.2-klein-{'base-' if is_base else ''}{size}"
    variant: Variant = f"klein-{'base-' if is_base else ''}{size.lower()}"  # type: ignore[assignment]
    return ModelSpec(
        name=name,
        source=f"black-forest-labs/{name}",
        family="flux2",
        variant=variant,
        default_steps=50 if is_base else 4,
        default_guidance=4.0 if is_base else 1.0,
        licence=licence,
        gated=licence != "Apache-2.0",
        summary=summary,
    )


def _flux3(is_base: bool, summary: str) -> ModelSpec:
    """A checkpoint of FLUX.3 Image [klein]. Args: is_base: not distilled to few steps."""
    return ModelSpec(
        name=f"FLUX.3-klein{'-base' if is_base else ''}",
        source=f"black-forest-labs/flux-3-image-klein{'-base' if is_base else ''}",
        family="flux3",
        variant="flux3-klein-base" if is_base else "flux3-klein",
        max_sequence_length=8192,
        max_pixels=4096 * 4096,
        default_steps=50 if is_base else 16,
        default_guidance=4.0 if is_base else 1.0,
        licence="FLUX Kommunity License (non-commercial)",
        gated=True,
        summary=summary,
    )


def _sdxl(name: str, source: str, variant: Variant, steps: int, guidance: float, licence: str, text: str) -> ModelSpec:
    """A checkpoint of SDXL's architecture: 3.5 B parameters, trained at a megapixel."""
    return ModelSpec(
        name=name,
        source=source,
        family="sdxl",
        variant=variant,
        max_sequence_length=77,
        max_pixels=2048 * 2048,
        default_steps=steps,
        default_guidance=guidance,
        licence=licence,
        summary=text,
    )


def _random(spec: ModelSpec) -> ModelSpec:
    """The same architecture with random weights."""
    name = f"random:{spec.name}"
    summary = "the full architecture with random weights made on the device, for benchmarks"
    return replace(spec, name=name, source=name, licence="none (random weights)", gated=False, summary=summary)


_KLEINS = (
    _klein("4B", False, "Apache-2.0", "draws and edits in 4 steps, 4 B parameters"),
    _klein("4B", True, "Apache-2.0", "the same before it was distilled: many steps, real guidance"),
    _klein("9B", False, "FLUX Non-Commercial", "draws and edits in 4 steps, 9 B parameters"),
    _klein("9B", True, "FLUX Non-Commercial", "the same before it was distilled"),
)

_KLEIN_KV = replace(
    _KLEINS[2],
    name="FLUX.2-klein-9B-KV",
    source="black-forest-labs/FLUX.2-klein-9b-kv",
    summary="klein-9B that computes the pictures it looks at in its first step alone",
)

_FLUX3S = (
    _flux3(False, "draws and edits in 16 steps, 5.6 B parameters; wants prompts that were written out"),
    _flux3(True, "the same before it was distilled: many steps, real guidance"),
)

_SDXLS = (
    _sdxl(
        "Playground-v2.5", "playgroundai/playground-v2.5-1024px-aesthetic", "playground", 25, 3.0,
        "Playground v2.5 Community", "SDXL's architecture, EDM's schedule",
    ),
    _sdxl("SDXL", "stabilityai/stable-diffusion-xl-base-1.0", "sdxl", 30, 5.0, "OpenRAIL++-M", "3.5 B parameters"),
)  # fmt: skip
_LIGHTNING = _sdxl(
    "SDXL-Lightning", "ByteDance/SDXL-Lightning", "lightning", 4, 1.0, "OpenRAIL++-M", "SDXL in few steps"
)
"""Published as UNets alone: `--model SDXL+sdxl_lightning_4step_unet.safetensors`, or a folder with one in it."""

_FLUX2_DEV = ModelSpec(
    name="FLUX.2-dev",
    source="black-forest-labs/FLUX.2-dev",
    family="flux2",
    variant="flux2-dev",
    default_guidance=4.0,
    licence="FLUX [dev] Non-Commercial",
    gated=True,
    summary="draws and edits, 32 B parameters and a text encoder of 18 B",
)

_FLUX2_SHAPES = ModelSpec(
    name="flux2-shapes",
    source=str(_HERE / "shapes" / "flux2-shapes"),
    family="flux2",
    variant="klein-4b",
    max_sequence_length=32,
    default_steps=4,
    default_guidance=1.0,
    licence="Apache-2.0",
    summary="embedded FLUX.2: draws and edits shapes in 4 steps",
    base="flux-shapes",
    native_pixels=1024 * 640,
    keeps_reference_size=True,
)
_SDXL_SHAPES = replace(
    _SDXLS[0],
    name="sdxl-shapes",
    source=str(_HERE / "shapes" / "sdxl-shapes"),
    licence="Apache-2.0",
    summary="embedded SDXL with Playground v2.5's schedule: draws shapes",
    base="flux-shapes",
)
_SHAPES = (
    _FLUX2_SHAPES,
    _SDXL_SHAPES,
    replace(
        _SDXL_SHAPES,
        name="sdxl-shapes-lightning",
        source=f"{_SDXL_SHAPES.source}-lightning",
        variant="lightning",
        default_steps=4,
        default_guidance=1.0,
        summary="the same weights with SDXL-Lightning's schedule: 4 steps",
    ),
)
"""Each listed from the moment that its weights are here: `python -m models.shapes.flux2.train`, `...sdxl.train`."""

_SPECS = (
    ModelSpec(
        name="flux-shapes",
        source=str(_HERE / "shapes" / "flux-shapes"),
        max_sequence_length=32,
        licence="Apache-2.0",
        summary="embedded: coloured shapes, a few megabytes, runs on a CPU",
        native_pixels=1024 * 640,
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
    _sibling("kontext", "edits a picture as told: make the circle green"),
    _sibling("fill", "draws what is missing under a mask"),
    _sibling("redux", "sees a picture and lets flux-shapes draw more like it"),
    _sibling("canny", "colours the edges of a picture"),
    _sibling("depth", "colours the depth of a picture"),
    _sibling("controlnet", "edges for flux-shapes, as a second network", "controlnet-canny"),
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
    _flux1_dev("kontext", 2.5, "edits pictures as told"),
    _flux1_dev("fill", 30.0, "draws what is missing under a mask"),
    _flux1_dev("redux", 3.5, "sees a picture and lets FLUX.1-dev draw more like it"),
    _flux1_dev("canny", 30.0, "follows the edges of a picture"),
    _flux1_dev("depth", 10.0, "follows the depth of a picture"),
    ModelSpec(
        name="Depth-Anything-V2-Small",
        source="depth-anything/Depth-Anything-V2-Small-hf",
        variant="depth-estimator",
        licence="Apache-2.0",
        summary="depth of a picture, for the checkpoints that follow it",
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
    *(spec for spec in _SHAPES if Path(spec.source).is_dir()),
    *_KLEINS,
    _KLEIN_KV,
    _FLUX2_DEV,
    *_FLUX3S,
    *_SDXLS,
    *map(_random, (*_KLEINS, _KLEIN_KV, _FLUX2_DEV, *_FLUX3S, *_SDXLS, _LIGHTNING)),
)

UNNAMED: dict[Variant, str] = {
    "lightning": "SDXL+sdxl_lightning_4step_unet.safetensors",
    "flux2-turbo": "FLUX.2-dev+flux.2-turbo-lora.safetensors",
}
"""What `--model` takes for variants that are published in no repository of their own."""

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

TINY_KLEIN = replace(
    TINY,
    name="random:tiny-klein",
    source="random:tiny-klein",
    family="flux2",
    variant="klein-4b",
    max_sequence_length=24,
    default_guidance=1.0,
    summary="a FLUX.2 of a few thousand random weights, for tests; not listed",
)
TINY_KLEIN_BASE = replace(
    TINY_KLEIN, name="random:tiny-klein-base", source="random:tiny-klein-base", variant="klein-base-4b",
    default_guidance=4.0,
)  # fmt: skip
TINY_KLEIN_KV = replace(TINY_KLEIN, name="random:tiny-klein-kv", source="random:tiny-klein-kv")
TINY_FLUX2_DEV = replace(
    TINY_KLEIN,
    name="random:tiny-flux2-dev",
    source="random:tiny-flux2-dev",
    variant="flux2-dev",
    max_sequence_length=300,
    default_guidance=4.0,
)
TINY_FLUX3 = replace(
    TINY,
    name="random:tiny-flux3",
    source="random:tiny-flux3",
    family="flux3",
    variant="flux3-klein",
    max_sequence_length=240,
    default_guidance=1.0,
    summary="a FLUX.3 of a few thousand random weights, for tests; not listed",
)
TINY_FLUX3_BASE = replace(
    TINY_FLUX3, name="random:tiny-flux3-base", source="random:tiny-flux3-base", variant="flux3-klein-base",
    default_guidance=4.0,
)  # fmt: skip
TINY_SDXL = replace(
    TINY,
    name="random:tiny-sdxl",
    source="random:tiny-sdxl",
    family="sdxl",
    variant="sdxl",
    max_sequence_length=77,
    default_guidance=5.0,
    summary="an SDXL of a few thousand random weights, for tests; not listed",
)
TINY_LIGHTNING = replace(
    TINY_SDXL, name="random:tiny-lightning", source="random:tiny-lightning", variant="lightning", default_guidance=1.0
)
TINY_PLAYGROUND = replace(
    TINY_SDXL, name="random:tiny-playground", source="random:tiny-playground", variant="playground",
    default_guidance=3.0,
)  # fmt: skip
_TINIES = (
    TINY, TINY_KLEIN, TINY_KLEIN_BASE, TINY_KLEIN_KV, TINY_FLUX2_DEV, TINY_FLUX3, TINY_FLUX3_BASE, TINY_SDXL,
    TINY_LIGHTNING, TINY_PLAYGROUND,
)  # fmt: skip
UNLISTED = {spec.name: spec for spec in _TINIES}


def klein(is_base: bool, is_large: bool) -> Variant:
    """A FLUX.2 [klein]. Args: is_base: not distilled to few steps. is_large: 9B, not 4B."""
    variants: dict[tuple[bool, bool], Variant] = {
        (False, False): "klein-4b", (False, True): "klein-9b",
        (True, False): "klein-base-4b", (True, True): "klein-base-9b",
    }  # fmt: skip
    return variants[is_base, is_large]


def flux2_dev(name: str) -> Variant:
    """What FLUX.2 [dev] is for: whether its weights were made for few steps, only a name tells."""
    return "flux2-turbo" if "turbo" in name.lower() else "flux2-dev"


def own_estimator(spec: ModelSpec) -> Path | None:
    """The depth estimator that a checkpoint brings in its own folder."""
    folder = Path(spec.source) / "depth_estimator"
    return folder if (folder / "config.json").is_file() else None


def siblings(specs: Sequence[ModelSpec]) -> tuple[ModelSpec, ...]:
    """What is there on demand besides these: checkpoints that belong to one of them and whose files are here."""
    names = {spec.name for spec in specs}
    pretended = [other for spec in specs if spec.is_fake for other in _pretended_beside(spec)]
    found = (s for s in _SPECS if s.base in names and s.name not in names and Path(s.source).is_dir())
    return (*found, *pretended)


def _pretended_beside(spec: ModelSpec) -> list[ModelSpec]:
    """One of every other variant, so that a fake answers every endpoint."""
    others = [variant for variant in get_args(Variant) if variant != spec.variant]
    return [replace(spec, name=f"{spec.name}-{variant}", variant=variant, base=spec.name) for variant in others]
