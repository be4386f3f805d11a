"""The parts of a checkpoint from single files: what each is, and what it is made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, AutoencoderKLFlux2, Flux2Transformer2DModel, FluxTransformer2DModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

from models.architectures import ARCHITECTURES
from models.building import on_meta
from models.nf4 import read_states
from models.part import Convert, Part, in_stored_forms, made
from models.registry import Family, Variant
from models.single.companions import companions, held_part
from models.single.configs import (
    Shapes,
    clip_config,
    flux2_transformer_config,
    flux2_vae_config,
    qwen3_config,
    t5_config,
    transformer_config,
    vae_config,
)
from models.single.contents import Header, Held, variant_of
from models.single.header import header_of
from models.single.layout import diffusers_transformer, diffusers_vae, transformers_t5

SPARE = ("logit_scale", "text_projection.weight", "position_ids")
"""What files of CLIP and ComfyUI's checkpoints hold beside the text encoder that is used."""


def transformer_part(file: Path, base: Mapping[str, Any], family: Family = "flux") -> tuple[Part, Variant]:
    """A file's transformer and what it is for.

    Args: base: configuration of the transformer whose place it takes, for what no shape tells; may be empty.
    Raises: LoadError if the file holds none.
    """
    part, variant = _part("transformer", file, family), variant_of(header_of(file), file.name)
    assert variant is not None
    heads = ("attention_head_dim", "num_attention_heads")
    if "axes_dims_rope" in base and all(base.get(name) == part.config[name] for name in heads[:1]):
        part.config["axes_dims_rope"] = tuple(base["axes_dims_rope"])
    return part, variant


def file_parts(
    file: Path, folders: Sequence[Path], family: Family = "flux"
) -> tuple[dict[str, Part], dict[str, Path], Variant]:
    """All parts of the checkpoint that a file is or begins, its tokenizers, and what it is for.

    What the file does not hold is sought around it and in `folders`. Raises: LoadError naming what is missing.
    """
    transformer, variant = transformer_part(file, {}, family)
    homes, tokenizers = companions(file, folders)
    others = {name: _part(name, home, family) for name, home in homes.items()}
    return others | {"transformer": transformer}, tokenizers, variant


def sigmas_of(variant: Variant) -> dict[str, Any]:
    """The noise levels that Black Forest Labs published with a transformer of this kind."""
    kind = "schnell" if variant == "schnell" else "dev"
    return dict(ARCHITECTURES[f"random:FLUX.1-{kind}"].sigmas)


def _part(name: str, file: Path, family: Family) -> Part:
    """Raises: LoadError if the file does not hold it."""
    header, held = held_part(name, file, family)
    own = {
        key: entry
        for key, entry in header.items()
        if key.startswith(held.prefix) and not (name == "text_encoder" and key.endswith(SPARE))
    }
    if name == "text_encoder_2":
        own = {key: entry for key, entry in own.items() if not key.endswith(SPARE)}
    label = f"{file.parent.name}/{file.name}, {name.replace('_', ' ')}"
    kind, configured = _KINDS[family][name]
    part: Part = made(label, lambda: _made_part(label, kind, configured, held, file, own))
    return part


def _made_part(label: str, kind: Any, configured: Callable[[Shapes], Any], held: Held, file: Path, own: Header) -> Part:
    renamed = _convert(held, {})
    described = on_meta(own) | read_states((file,), own)
    tensors = {key.removeprefix(held.prefix): stored for key, stored in described.items()}
    is_named = issubclass(kind, FluxTransformer2DModel | Flux2Transformer2DModel) or held.layout == "llama.cpp"
    names = renamed(in_stored_forms(tensors, label)) if is_named else tensors
    config = configured({key: tuple(tensor.shape) for key, tensor in names.items()})
    return Part(label, kind, config, (file,), own, held.prefix, _convert(held, config))


def _convert(held: Held, config: Any) -> Convert:
    if held.layout == "bfl":
        return partial(diffusers_transformer, family=held.family)
    if held.layout == "llama.cpp":
        return transformers_t5
    if held.layout == "ldm":
        return partial(diffusers_vae, config=config)
    return dict


_KINDS: dict[Family, dict[str, tuple[Any, Callable[[Shapes], Any]]]] = {
    "flux": {
        "text_encoder": (CLIPTextModel, lambda shapes: CLIPTextConfig(**clip_config(shapes))),
        "text_encoder_2": (T5EncoderModel, lambda shapes: T5Config(**t5_config(shapes))),
        "vae": (AutoencoderKL, vae_config),
        "transformer": (FluxTransformer2DModel, transformer_config),
    },
    "flux2": {
        "text_encoder": (Qwen3ForCausalLM, lambda shapes: Qwen3Config(**qwen3_config(shapes))),
        "vae": (AutoencoderKLFlux2, flux2_vae_config),
        "transformer": (Flux2Transformer2DModel, flux2_transformer_config),
    },
}
