"""Steps of a known layout, launched at once: recorded at their second time (a CUDA graph), replayed from then on.

Launching a step of FLUX.1 one kernel after another took the host of an H200 39 ms, more than the GPU needs for a small
picture. The kernels are the same, and so are the results.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.accelerator import Accelerator
from models.tuning import RECORDED_TOKENS

_MOST = 8
"""Recordings kept, those used last."""

_MOST_SEEN = 256
"""Layouts remembered because they came once."""

Work = Callable[..., Tensor]


@dataclass(frozen=True)
class _Recording:
    """Args: inputs: what the recorded work reads. keeps: what else it reads. result: where it leaves its result."""

    inputs: tuple[Tensor, ...]
    keeps: object
    result: Tensor
    replay: Callable[[], None]


class Replay:
    """Runs work on tensors of the same shapes by key. One thread, one stream."""

    def __init__(self, accelerator: Accelerator, note: Callable[[str], None]) -> None:
        self._accelerator = accelerator
        self._note = note
        self._kept: OrderedDict[Hashable, _Recording] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._is_broken = False

    def run(self, key: Hashable, tokens: int, inputs: Sequence[Tensor], work: Work, keeps: object = None) -> Tensor:
        """`work(*inputs)`, replayed if the key is known.

        Args:
            key: equal keys mean equal launches: the same shapes and the same weights.
            tokens: of the step.
            work: must read nothing that changes but its arguments, and must not wait for the device.
            keeps: tensors that it reads besides them and that nobody may hold on to: a recording knows addresses.
        """
        if self._is_broken or tokens > RECORDED_TOKENS:
            return work(*inputs)
        recording = self._kept.get(key)
        if recording is None:
            # At its first time kernels may be compiled and memory is found out about: that cannot be recorded.
            recording = self._record(key, inputs, work, keeps) if key in self._seen else None
            self._remember(key)
        if recording is None:
            return work(*inputs)
        self._kept.move_to_end(key)
        for held, value in zip(recording.inputs, inputs, strict=True):
            held.copy_(value)
        recording.replay()
        return recording.result.clone()  # the next replay writes there again

    def _remember(self, key: Hashable) -> None:
        self._seen[key] = None
        self._seen.move_to_end(key)
        if len(self._seen) > _MOST_SEEN:
            self._seen.popitem(last=False)

    def _record(self, key: Hashable, inputs: Sequence[Tensor], work: Work, keeps: object) -> _Recording | None:
        held = tuple(torch.empty_like(value).copy_(value) for value in inputs)
        try:
            recorded = self._accelerator.record(lambda: work(*held))
        except Exception as exc:  # a driver or a library that cannot: launching one by one always works
            self._is_broken = True
            self._kept.clear()
            self._note(f"steps are launched kernel by kernel: {type(exc).__name__}: {str(exc).splitlines()[0]}")
            return None
        if recorded is None:
            self._is_broken = True
            return None
        recording = self._kept[key] = _Recording(held, keeps, *recorded)
        if len(self._kept) > _MOST:
            self._kept.popitem(last=False)
        return recording
