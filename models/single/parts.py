"""The parts of a checkpoint from single files: what each is, and what it is made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from models.architectures import ARCHITECTURES
from models.building import on_meta
from models.errors import LoadError
from models.nf4 import read_states, with_nf4
from models.part import Convert, Part, made
from models.registry import Variant
from models.single.configs import Shapes, clip_config, t5_config, transformer_config, vae_config
from models.single.contents import Header, Held, contents, variant_of, what_it_is
from models.single.header import header_of
from models.single.layout import diffusers_transformer, diffusers_vae, transformers_t5, with_scales
from models.single.search import companion, tokenizer_folder

_WORDS = {
    "transformer": "FLUX.1's transformer",
    "vae": "FLUX.1's VAE (ae.safetensors)",
    "text_encoder": "CLIP (clip_l.safetensors)",
    "text_encoder_2": "T5 (t5xxl_fp16.safetensors)",
    "tokenizer": "CLIP's tokenizer (a folder `tokenizer` with tokenizer.json, or vocab.json and merges.txt)",
    "tokenizer_2": "T5's tokenizer (a folder `tokenizer_2` with tokenizer.json or spiece.model)",
}
_SPARE = ("logit_scale", "text_projection.weight", "position_ids")
"""What files of CLIP and ComfyUI's checkpoints hold beside the text encoder that is used."""


def transformer_part(file: Path, base: Mapping[str, Any]) -> tuple[Part, Variant]:
    """A file's transformer and what it is for.

    Args: base: configuration of the transformer whose place it takes, for what no shape tells; may be empty.
    Raises: LoadError if the file holds none.
    """
    part, variant = _part("transformer", file), variant_of(header_of(file), file.name)
    assert variant is not None
    heads = ("attention_head_dim", "num_attention_heads")
    if "axes_dims_rope" in base and all(base.get(name) == part.config[name] for name in heads[:1]):
        part.config["axes_dims_rope"] = tuple(base["axes_dims_rope"])
    return part, variant


def file_parts(file: Path, folders: Sequence[Path]) -> tuple[dict[str, Part], dict[str, Path], Variant]:
    """All parts of the checkpoint that a file is or begins, its tokenizers, and what it is for.

    What the file does not hold is sought around it and in `folders`. Raises: LoadError naming what is missing.
    """
    transformer, variant = transformer_part(file, {})
    held = contents(header_of(file))
    homes = {name: file if name in held else companion(name, file, folders) for name in _KINDS if name != "transformer"}
    tokenizers = {name: tokenizer_folder(name, file, folders) for name in ("tokenizer", "tokenizer_2")}
    missing = [_WORDS[name] for name, where in (homes | tokenizers).items() if where is None]
    if missing:
        raise LoadError(
            f"{file.name} needs {'; '.join(missing)}, found neither beside it nor in --model-dir; "
            f"put them there, or take them from a folder: --model FLUX.1-dev --transformer {file.name}."
        )
    parts = {name: _part(name, home) for name, home in homes.items() if home is not None}
    found = {name: folder for name, folder in tokenizers.items() if folder is not None}
    return parts | {"transformer": transformer}, found, variant


def sigmas_of(variant: Variant) -> dict[str, Any]:
    """The noise levels that Black Forest Labs published with a transformer of this kind."""
    kind = "schnell" if variant == "schnell" else "dev"
    return dict(ARCHITECTURES[f"random:FLUX.1-{kind}"].sigmas)


def _part(name: str, file: Path) -> Part:
    """Raises: LoadError if the file does not hold it."""
    header = header_of(file)
    held = contents(header).get(name)
    if held is None:
        raise LoadError(f"{file.name} holds {what_it_is(header)}, not {_WORDS[name]}.")
    own = {
        key: entry
        for key, entry in header.items()
        if key.startswith(held.prefix) and not (name == "text_encoder" and key.endswith(_SPARE))
    }
    if name == "text_encoder_2":
        own = {key: entry for key, entry in own.items() if not key.endswith(_SPARE)}
    label = f"{file.parent.name}/{file.name}, {name.replace('_', ' ')}"
    kind, configured = _KINDS[name]
    part: Part = made(label, lambda: _made_part(label, kind, configured, held, file, own))
    return part


def _made_part(label: str, kind: Any, configured: Callable[[Shapes], Any], held: Held, file: Path, own: Header) -> Part:
    renamed = _convert(held, {})
    described = on_meta(own) | read_states((file,), own)
    tensors = {key.removeprefix(held.prefix): stored for key, stored in described.items()}
    is_named = kind is FluxTransformer2DModel or held.layout == "llama.cpp"
    names = renamed(with_nf4(with_scales(tensors, label), label)) if is_named else tensors
    config = configured({key: tuple(tensor.shape) for key, tensor in names.items()})
    return Part(label, kind, config, (file,), own, held.prefix, _convert(held, config))


def _convert(held: Held, config: Any) -> Convert:
    if held.layout == "bfl":
        return diffusers_transformer
    if held.layout == "llama.cpp":
        return transformers_t5
    if held.layout == "ldm":
        return partial(diffusers_vae, config=config)
    return dict


_KINDS: dict[str, tuple[Any, Callable[[Shapes], Any]]] = {
    "text_encoder": (CLIPTextModel, lambda shapes: CLIPTextConfig(**clip_config(shapes))),
    "text_encoder_2": (T5EncoderModel, lambda shapes: T5Config(**t5_config(shapes))),
    "vae": (AutoencoderKL, vae_config),
    "transformer": (FluxTransformer2DModel, transformer_config),
}
