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
_LATENTS = 64
"""Channels of a token of FLUX.1: 16 of the latents, 2 x 2 cells."""


def contents(names: Iterable[str]) -> dict[str, Held]:
    """The parts of a checkpoint that a file with these names holds, by part; empty if none is known."""
    known = set(names)
    held: dict[str, Held] = {}
    for part, layout, sign, prefixes in _SIGNS:
        prefix = next((prefix for prefix in prefixes if prefix + sign in known), None)
        if prefix is not None and part not in held:
            held[part] = Held(prefix, layout)
    is_flux1 = "transformer" in held and any(held["transformer"].prefix + name in known for name in _FLUX1)
    if not is_flux1 or any(name.startswith("controlnet_") for name in known):
        held.pop("transformer", None)
    return held


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
