"""What a file of weights is, from the names and shapes of its tensors and never from its own name. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from models.files.headers import TensorEntry
from models.files.layouts import described, foreign
from models.registry import Variant

Layout = Literal["bfl", "diffusers", "ldm", "transformers", "llama.cpp"]
Header = Mapping[str, TensorEntry]


@dataclass(frozen=True, slots=True)
class Held:
    """One part inside a file: names that begin with `prefix`, in a layout."""

    prefix: str
    layout: Layout


_SIGNS: tuple[tuple[str, Layout, str, tuple[str, ...]], ...] = (
    ("transformer", "bfl", "double_blocks.0.img_attn.qkv.weight", ("model.diffusion_model.", "diffusion_model.", "")),
    ("transformer", "diffusers", "single_transformer_blocks.0.proj_mlp.weight", ("transformer.", "")),
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
)
"""(part, layout, the name that tells, prefixes it may have)"""
_FLUX1 = ("vector_in.in_layer.weight", "time_text_embed.text_embedder.linear_1.weight")
"""What the transformers of FLUX.2, Chroma and others of the same block names do not have."""
_ANOTHER = {
    "vae": ("bn.running_mean",),
    "text_encoder_2": (
        "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight",
        "enc.blk.1.attn_rel_b.weight",
    ),
}
"""What tells a part of others that has the same names: FLUX.2's VAE, and UMT5, which weighs positions in each layer."""
_WIDTHS = {
    "vae": (("decoder.conv_in.weight",), 1),
    "text_encoder": (("text_model.embeddings.position_embedding.weight",), 1),
    "text_encoder_2": (("encoder.final_layer_norm.weight", "enc.output_norm.weight"), 0),
}
"""By part: names of a tensor that is as wide as what the part hands on, and the side that is."""
_WANTED = {
    "vae": (("final_layer.linear.weight", "proj_out.weight"), 0, 4),
    "text_encoder": (("vector_in.in_layer.weight", "time_text_embed.text_embedder.linear_1.weight"), 1, 1),
    "text_encoder_2": (("txt_in.weight", "context_embedder.weight"), 1, 1),
}
"""By part: names of the transformer's tensor that takes it, the side that must be as wide, and how many times."""
_LATENTS = 64
"""Channels of a token of FLUX.1: 16 of the latents, 2 x 2 cells."""


def contents(names: Iterable[str]) -> dict[str, Held]:
    """The parts of a checkpoint that a file with these names holds, by part; empty if none is known."""
    known = set(names)
    held: dict[str, Held] = {}
    for part, layout, sign, prefixes in _SIGNS:
        prefix = next((prefix for prefix in prefixes if prefix + sign in known), None)
        if prefix is not None and part not in held and not _is_another(part, prefix, known):
            held[part] = Held(prefix, layout)
    return held


def _is_another(part: str, prefix: str, known: set[str]) -> bool:
    """Whether it only looks like a part of FLUX.1."""
    if part == "transformer":
        is_flux1 = any(prefix + name in known for name in _FLUX1)
        return not is_flux1 or any(name.startswith("controlnet_") for name in known)
    return any(prefix + name in known for name in _ANOTHER.get(part, ()))


def fits(part: str, header: Header, transformer: Header) -> bool:
    """Whether a part is as wide as a transformer takes it; True where packed forms hide a width.

    Args: header: of a file that holds the part. transformer: of one that holds the transformer.
    """
    (names, side), (takers, taken, times) = _WIDTHS[part], _WANTED[part]
    own = _side(header, contents(header)[part].prefix, names, side)
    wanted = _side(transformer, contents(transformer)["transformer"].prefix, takers, taken)
    return own is None or wanted is None or own * times == wanted


def _side(header: Header, prefix: str, names: Iterable[str], side: int) -> int | None:
    entry = next((header[prefix + name] for name in names if prefix + name in header), None)
    return None if entry is None or entry.dtype == "U8" or len(entry.shape) <= side else entry.shape[side]


def what_it_is(header: Header) -> str:
    """A file in words, for whoever gave one that cannot be served."""
    if (whose := foreign(header)) is not None:  # first: a checkpoint of Stable Diffusion holds a VAE, too
        return whose
    words = {"vae": "a VAE alone", "text_encoder": "CLIP alone", "text_encoder_2": "T5 alone"}
    held = " and ".join(words[part] for part in contents(header) if part in words)
    return held or described(header) or "no model that is known here"


def variant_of(header: Header, name: str) -> Variant | None:
    """What a transformer is for; None if the file holds none.

    Args: name: of the file, for what equal shapes cannot tell (Krea and SRPO from dev, depth from canny).
    """
    held = contents(header).get("transformer")
    if held is None:
        return None
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
