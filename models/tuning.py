"""How the same arithmetic is run: switches for speed that change pictures by rounding at most. No torch."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

RECORDED_TOKENS = 8192
"""Of the largest step that is replayed: launching is soon done beside what more of them take to compute. It bounds the
memory in which recordings run, too."""

AttentionName = Literal["auto", "grouped", "cudnn", "varlen", "fa3"]
KernelsName = Literal["auto", "torch", "triton", "compiled"]


@dataclass(frozen=True, slots=True)
class Tuning:
    """One choice a switch; `auto` and None are decided by the kind of device.

    Args:
        attention: which kernel; `auto` takes the fastest right one, measured at load where there is a choice.
        kernels: what runs the small operations between matrix products: torch's own, Triton, or torch.compile.
        fuse_qkv: query, key and value as one matrix product.
        fuse_mlp: in single blocks the MLP's first matrix with them, and no copy in front of the last.
        split_k: whether matrix products may be split along their inner side, which makes the order of additions
            depend on the number of rows. Means something on CUDA only.
        replay: steps of a layout that came before are launched at once, as a CUDA graph, where nothing else is decided
            in them.
        vae_channels_last: the decoder's pictures lie in memory channels last.
        fuse_vae_norms: the VAE's group norms and the SiLUs after them are one Triton kernel.
        compile_vae: the decoder goes through torch.compile.
        round_attention: beside float8 weights, attention multiplies 8-bit numbers, too, where a kernel for that is
            right. The one switch here that changes more than roundings of the dtype.
    """

    attention: AttentionName = "auto"
    kernels: KernelsName = "auto"
    fuse_qkv: bool | None = None
    fuse_mlp: bool | None = None
    split_k: bool | None = None
    replay: bool | None = None
    vae_channels_last: bool | None = None
    fuse_vae_norms: bool | None = None
    compile_vae: bool | None = None
    round_attention: bool | None = None

    def resolved(self, kind: str) -> Tuning:
        """With every open switch decided, except that `attention` may stay `auto` for a measurement."""
        chosen = {field.name: getattr(self, field.name) for field in fields(self)}
        defaults = {field.name: getattr(_DEFAULTS.get(kind, PLAIN), field.name) for field in fields(self)}
        return Tuning(**{name: defaults[name] if value in ("auto", None) else value for name, value in chosen.items()})

    @property
    def records(self) -> bool:
        """Whether steps may be recorded. Only of a tuning that is resolved."""
        return bool(self.replay) and self.kernels != "compiled"

    def __str__(self) -> str:
        """What `parse_tuning` reads; open switches are left out."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        words = {name: {True: "on", False: "off"}.get(value, value) for name, value in named.items()}
        return ",".join(f"{name}={word}" for name, word in words.items() if word not in ("auto", None))


AUTO = Tuning()
"""Every switch as the device has it."""

PLAIN = Tuning("grouped", "torch", False, False, True, False, False, False, False, False)
"""Everything off: what a CPU runs, equal to diffusers bit for bit."""

_DEFAULTS = {"cuda": Tuning("auto", "triton", True, True, False, True, True, True, False, False)}


def parse_tuning(text: str) -> Tuning:
    """`kernels=triton,fuse_qkv=off` as a Tuning; `off` alone turns everything off. Raises: ValueError."""
    if text == "off":
        return PLAIN
    tuning = Tuning()
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = item.partition("=")
        if name not in _VALUES:
            raise ValueError(f"unknown tuning {name!r}: give off, or some of {', '.join(_VALUES)}")
        if value not in _VALUES[name]:
            raise ValueError(f"tuning {name} is {value!r}: give one of {', '.join(_VALUES[name])}")
        tuning = replace(tuning, **{name: _VALUES[name][value]})
    return tuning


_SWITCH: dict[str, bool | str | None] = {"auto": None, "on": True, "off": False}
_VALUES: dict[str, dict[str, Any]] = {
    "attention": {name: name for name in get_args(AttentionName)},
    "kernels": {name: name for name in get_args(KernelsName)},
} | {field.name: _SWITCH for field in fields(Tuning) if field.name not in ("attention", "kernels")}
