"""What a file of weights is, from the names and shapes of its tensors and never from its own name. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from models.files.headers import TensorEntry
from models.files.layouts import described, foreign
from models.flux2.architectures import READ_LAYERS
from models.registry import Family, Variant, flux2_dev, klein

Layout = Literal["bfl", "diffusers", "ldm", "transformers", "llama.cpp"]
Header = Mapping[str, TensorEntry]


@dataclass(frozen=True, slots=True)
class Held:
    """One part inside a file: names that begin with `prefix`, in a layout. Args: family: whose part it is."""

    prefix: str
    layout: Layout
    family: Family = "flux"


_SIGNS: tuple[tuple[str, Layout, str, tuple[str, ...]], ...] = (
    ("transformer", "bfl", "double_blocks.0.img_attn.qkv.weight", ("model.diffusion_model.", "diffusion_model.", "")),
    ("transformer", "diffusers", "single_transformer_blocks.0.proj_mlp.weight", ("transformer.", "")),
    ("transformer", "diffusers", "single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight", ("transformer.", "")),
    ("vae", "ldm", "decoder.up.0.block.0.conv1.weight", ("vae.", "first_stage_model.", "")),
    ("vae", "diffusers", "decoder.up_blocks.0.resnets.0.conv1.weight", ("vae.", "")),
    (
        "text_encoder_2",
        "transformers",
        "encoder.block.0.layer.0.SelfAttention.q.weight",
        ("text_encoders.t5xxl.transformer.", "text_encoder_2.", ""),
    ),
    ("text_encoder_2", "llama.cpp", "enc.blk.0.attn_q.weight", ("",)),
    (
        "text_encoder",
        "transformers",
        "text_model.encoder.layers.0.self_attn.q_proj.weight",
        ("text_encoders.clip_l.transformer.", "text_encoder.", ""),
    ),
    (
        "text_encoder",
        "transformers",
        "model.layers.0.self_attn.q_norm.weight",
        ("text_encoders.qwen3_4b.transformer.", "text_encoders.qwen3_8b.transformer.", "text_encoder.", ""),
    ),
)
"""(part, layout, the name that tells, prefixes it may have)"""
_FLUX1 = ("vector_in.in_layer.weight", "time_text_embed.text_embedder.linear_1.weight")
_FLUX2 = ("double_stream_modulation_img.lin.weight", "double_stream_modulation_img.linear.weight")
"""What the transformers of Chroma and others of the same block names do not have."""
_GUIDANCE = ("guidance_in.in_layer.weight", "time_guidance_embed.guidance_embedder.linear_1.weight")
"""What of FLUX.2 only [dev] has."""
_UMT5 = ("encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight", "enc.blk.1.attn_rel_b.weight")
"""UMT5 has the names of T5, and weighs positions in each layer."""
_WIDTHS = {
    "vae": (("decoder.conv_in.weight",), 1),
    "text_encoder": (
        ("text_model.embeddings.position_embedding.weight", "model.embed_tokens.weight"),
        1,
    ),
    "text_encoder_2": (("encoder.final_layer_norm.weight", "enc.output_norm.weight"), 0),
}
"""By part: names of a tensor that is as wide as what the part hands on, and the side that is."""
_VAE_TAKEN = (("final_layer.linear.weight", "proj_out.weight"), 0, 4)
_TEXT = ("txt_in.weight", "context_embedder.weight")
_WANTED: dict[Family, dict[str, tuple[tuple[str, ...], int, int]]] = {
    "flux": {"vae": _VAE_TAKEN, "text_encoder": (_FLUX1, 1, 1), "text_encoder_2": (_TEXT, 1, 1)},
    "flux2": {"vae": _VAE_TAKEN, "text_encoder": (_TEXT, 1, len(READ_LAYERS))},
}
"""By part: names of the transformer's tensor that takes it, the side that must be as wide, and how many times."""
_KLEIN_4B_WIDTH = 3072
TRANSFORMERS: dict[Family, str] = {"flux": "FLUX.1's transformer", "flux2": "FLUX.2's transformer"}
_LATENTS = 64
"""Channels of a token of FLUX.1: 16 of the latents, 2 x 2 cells."""


def contents(names: Iterable[str]) -> dict[str, Held]:
    """The parts of a checkpoint that a file with these names holds, by part; empty if none is known."""
    known = set(names)
    held: dict[str, Held] = {}
    for part, layout, sign, prefixes in _SIGNS:
        prefix = next((prefix for prefix in prefixes if prefix + sign in known), None)
        family = None if prefix is None or part in held else _family(part, prefix, known)
        if prefix is not None and family is not None:
            held[part] = Held(prefix, layout, family)
    return held


def _family(part: str, prefix: str, known: set[str]) -> Family | None:
    """Whose part it is; None if it only looks like one of FLUX."""

    def has(names: Iterable[str]) -> bool:
        return any(prefix + name in known for name in names)

    match part:
        case "transformer" if any(name.startswith("controlnet_") for name in known):
            return None
        case "transformer":
            return "flux" if has(_FLUX1) else "flux2" if has(_FLUX2) else None
        case "vae":
            return "flux2" if has(("bn.running_mean",)) else "flux"
        case "text_encoder":
            return "flux2" if has(("model.embed_tokens.weight",)) else "flux"
    return None if has(_UMT5) else "flux"


def fits(part: str, header: Header, transformer: Header) -> bool:
    """Whether a part is of a transformer's family and as wide as it takes it; packed forms may hide a width.

    Args: header: of a file that may hold the part. transformer: of one that holds the transformer.
    """
    own, wanted = contents(header).get(part), contents(transformer)["transformer"]
    if own is None or own.family != wanted.family:
        return False
    (names, side), (takers, taken, times) = _WIDTHS[part], _WANTED[own.family][part]
    width = _side(header, own.prefix, names, side)
    taken_width = _side(transformer, wanted.prefix, takers, taken)
    return width is None or taken_width is None or width * times == taken_width


def _side(header: Header, prefix: str, names: Iterable[str], side: int) -> int | None:
    entry = next((header[prefix + name] for name in names if prefix + name in header), None)
    return None if entry is None or entry.dtype == "U8" or len(entry.shape) <= side else entry.shape[side]


def what_it_is(header: Header) -> str:
    """A file in words, for whoever gave one that cannot be served."""
    held = contents(header)
    if "transformer" in held:
        return TRANSFORMERS[held["transformer"].family]
    if (whose := foreign(header)) is not None:  # first: a checkpoint of Stable Diffusion holds a VAE, too
        return whose
    text = "CLIP alone" if "text_encoder" in held and held["text_encoder"].family == "flux" else "Qwen3 alone"
    words = {"vae": "a VAE alone", "text_encoder": text, "text_encoder_2": "T5 alone"}
    alone = " and ".join(words[part] for part in held if part in words)
    return alone or described(header) or "no model that is known here"


def variant_of(header: Header, name: str) -> Variant | None:
    """What a transformer is for; None if the file holds none.

    Args: name: of the file, for what equal shapes cannot tell (Krea and SRPO from dev, depth from canny).
    """
    held = contents(header).get("transformer")
    if held is None:
        return None
    if held.family == "flux2" and any(held.prefix + sign in header for sign in _GUIDANCE):
        return flux2_dev(name)
    if held.family == "flux2":
        is_large = (_side(header, held.prefix, ("img_in.weight", "x_embedder.weight"), 0) or 0) > _KLEIN_4B_WIDTH
        return klein(is_base="base" in name.lower(), is_large=is_large)
    is_bfl = held.layout == "bfl"
    first = header.get(held.prefix + ("img_in.weight" if is_bfl else "x_embedder.weight"))
    inputs = first.shape[-1] if first is not None and first.shape else 0  # what is amiss with it, loading says
    guidance = "guidance_in.in_layer.weight" if is_bfl else "time_text_embed.guidance_embedder.linear_1.weight"
    lowered = name.lower()
    if inputs == 2 * _LATENTS:
        return "depth" if "depth" in lowered else "canny"
    if inputs > 2 * _LATENTS:
        return "fill"
    if held.prefix + guidance not in header:
        return "schnell"
    named: tuple[Variant, ...] = ("krea", "srpo", "kontext")
    return next((variant for variant in named if variant in lowered), "dev")
