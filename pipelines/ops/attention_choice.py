"""Chooses a device's attention kernel: of those that run there and are correct there, the fastest as measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import median

import torch
from torch import Tensor

from models.accelerator import Accelerator
from pipelines.ops.attention import (
    Attend,
    cudnn_attention,
    emulated_attention,
    fa3_attention,
    fa3_float8_attention,
    grouped_attention,
    sage_attention,
    varlen_attention,
)

TYPICAL_PACK = (512 + 64**2, 512 + 32**2, 512 + 32**2)
"""Tokens of the pictures that attention is measured on: one of 1024 x 1024 and two of 512 x 512."""


@dataclass(frozen=True)
class Place:
    """Where attention is to run. Args: capability: of a CUDA device, else (0, 0)."""

    kind: str
    capability: tuple[int, int]
    dtype: torch.dtype

    @property
    def is_half_on_cuda(self) -> bool:
        return self.kind == "cuda" and self.dtype in (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Backend:
    """One way to attend. Args: missing: why it cannot run there; None if it can."""

    attend: Attend
    missing: Callable[[Place], str | None]


def _cudnn_missing(place: Place) -> str | None:
    return None if place.is_half_on_cuda else "needs a GPU and half precision"


def _varlen_missing(place: Place) -> str | None:
    enough = place.is_half_on_cuda and place.capability >= (8, 0)
    return None if enough else "needs a GPU of compute capability 8.0 and half precision"


def _fa3_missing(place: Place) -> str | None:
    if not (place.kind == "cuda" and place.capability[0] == 9 and place.dtype == torch.bfloat16):
        return "needs a Hopper GPU and bfloat16"
    return None if find_spec("fa3_fwd_interface") else "not installed: fa3-fwd"


def _sage_missing(place: Place) -> str | None:
    if reason := _varlen_missing(place):
        return reason
    return None if find_spec("sageattention") else "not installed: sageattention"


BACKENDS: dict[str, Backend] = {
    "grouped": Backend(grouped_attention, lambda place: None),
    "cudnn": Backend(cudnn_attention, _cudnn_missing),
    "varlen": Backend(varlen_attention, _varlen_missing),
    "fa3": Backend(fa3_attention, _fa3_missing),
}
"""By name. The first runs everywhere and is taken when no other is correct."""

ROUNDED: dict[str, Backend] = {
    "fa3": Backend(fa3_float8_attention, _fa3_missing),
    "sage": Backend(sage_attention, _sage_missing),
}
"""Kernels that multiply 8-bit numbers: for pictures that are known to be approximate, never for others."""


def choose_attention(
    name: str,
    place: Place,
    heads: int,
    head_dim: int,
    accelerator: Accelerator,
    note: Callable[[str], None],
    backends: Mapping[str, Backend] = BACKENDS,
    lengths: Sequence[int] = TYPICAL_PACK,
) -> Attend:
    """The backend of this name; for `auto` the fastest of those that are correct here.

    Correct means: as near to float32 as the first backend, and a picture's result the same bits alone as in a pack.
    """
    if name != "auto":
        if reason := backends[name].missing(place):
            raise ValueError(f"attention {name} cannot run here: {reason}")
        return backends[name].attend
    usable = {name: backend.attend for name, backend in backends.items() if backend.missing(place) is None}
    fallback = next(iter(backends.values())).attend
    if len(usable) == 1:
        return fallback
    trial = _Trial.of(place, heads, head_dim, accelerator, lengths)
    times = trial.times(usable, 2 * trial.distance(fallback) + 1e-6, note)
    if not times:
        return fallback
    best = min(times, key=times.__getitem__)
    note(f"attention {best}: {_told(times)}")
    return usable[best]


def choose_rounded(
    exact: Attend,
    place: Place,
    heads: int,
    head_dim: int,
    accelerator: Accelerator,
    note: Callable[[str], None],
    backends: Mapping[str, Backend] = ROUNDED,
    lengths: Sequence[int] = TYPICAL_PACK,
) -> Attend:
    """The fastest kernel of 8 bits that is correct here and faster than `exact`; else `exact`. A CPU emulates one.

    Correct means: at most twice as far from float32 as exact attention over numbers rounded to float8, and a picture's
    result the same bits alone as in a pack.
    """
    if place.kind == "cpu":
        return emulated_attention
    missing = {name: backend.missing(place) for name, backend in backends.items()}
    usable = {name: backend.attend for name, backend in backends.items() if missing[name] is None}
    if not usable:
        note("attention is not rounded: " + "; ".join(f"{name} {reason}" for name, reason in missing.items()))
        return exact
    trial = _Trial.of(place, heads, head_dim, accelerator, lengths)
    times = trial.times(usable, 2 * trial.distance(emulated_attention), note)
    times["exact"] = trial.ms(exact)
    best = min(times, key=times.__getitem__)
    note(f"attention beside float8 weights {best}: {_told(times)}")
    return usable.get(best, exact)


def _told(times: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {ms:.2f} ms" for name, ms in times.items())


@dataclass(frozen=True)
class _Trial:
    """A pack of random pictures to try attention on. Args: exact: what comes out for the last one, in float32."""

    query: Tensor
    key: Tensor
    value: Tensor
    lengths: Sequence[int]
    exact: Tensor
    accelerator: Accelerator

    @classmethod
    def of(cls, place: Place, heads: int, head_dim: int, accelerator: Accelerator, lengths: Sequence[int]) -> _Trial:
        generator = torch.Generator(accelerator.device).manual_seed(0)
        shape = (3, sum(lengths), heads, head_dim)
        query, key, value = torch.randn(shape, generator=generator, device=accelerator.device, dtype=place.dtype)
        # Of the last picture only: in float32 the whole pack may fall back to a kernel that writes out all scores.
        last_query, last_key, last_value = (x[-lengths[-1] :].float() for x in (query, key, value))
        exact = grouped_attention(last_query, last_key, last_value, lengths[-1:])
        return cls(query, key, value, lengths, exact, accelerator)

    def times(self, candidates: Mapping[str, Attend], allowed: float, note: Callable[[str], None]) -> dict[str, float]:
        """Milliseconds of those that are correct; `note` is told why others are not."""
        times: dict[str, float] = {}
        for name, attend in candidates.items():
            if reason := self._wrong(attend, allowed):
                note(f"attention {name} is not used: {reason}")
                continue
            times[name] = self.ms(attend)
        return times

    def ms(self, attend: Attend) -> float:
        return measure_ms(lambda: attend(self.query, self.key, self.value, self.lengths), self.accelerator)

    def distance(self, attend: Attend) -> float:
        """Of the last picture's result in company."""
        return _distance(self._together(attend), self.exact)

    def _together(self, attend: Attend) -> Tensor:
        return attend(self.query, self.key, self.value, self.lengths)[-self.lengths[-1] :]

    def _wrong(self, attend: Attend, allowed: float) -> str | None:
        """Why a backend is not correct here, or None."""
        last = self.lengths[-1]
        try:
            together = self._together(attend)
            alone = attend(self.query[-last:], self.key[-last:], self.value[-last:], self.lengths[-1:])
            distance = _distance(together, self.exact)
        except Exception as exc:  # a third-party kernel may raise anything; the others can still be used
            return f"{type(exc).__name__}: {str(exc).splitlines()[0] if str(exc) else ''}"
        if not distance <= allowed:
            return f"it is off by {distance:.2g}, {allowed:.2g} is allowed"
        return None if torch.equal(together, alone) else "a picture's bits change with its neighbours"


def _distance(result: Tensor, exact: Tensor) -> float:
    return float((result.to(exact.dtype) - exact).abs().max())


def measure_ms(work: Callable[[], object], accelerator: Accelerator, repeats: int = 5) -> float:
    """Median of a few runs, one after another."""
    work()
    times = []
    for _ in range(repeats):
        start, began = accelerator.mark(), time.perf_counter()
        work()
        end = accelerator.mark()
        end.wait()
        on_device = end.elapsed_ms(start)
        times.append((time.perf_counter() - began) * 1000 if on_device is None else on_device)
    return median(times)
