"""A device in place of a GPU: it has a GPU's capabilities, its tensors have shapes and no values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from models.accelerator import Launched, Marker

T = TypeVar("T")


@dataclass(frozen=True)
class _Done(Generic[T]):
    """Work that is done when it returns, and the marker behind it."""

    value: T

    def is_done(self) -> bool:
        return True

    def wait(self) -> None:
        return None

    def result(self) -> T:
        return self.value

    def notify(self, callback: Callable[[], object]) -> None:
        callback()

    def elapsed_ms(self, start: Marker) -> float | None:
        return 0.0


class NullAccelerator:
    """What the engine asks of an H100 or H200, on the `meta` device. Attributes: uploads: asynchronous copies to it."""

    kind = "cuda"
    name = "no device"
    capability = (9, 0)
    notifies = True
    has_float8 = True
    modulates_row_by_row = False
    default_dtype = torch.bfloat16

    def __init__(self) -> None:
        self.device = torch.device("meta")
        self.uploads = 0

    def memory(self) -> dict[str, int]:
        return {"used": 0, "total": 80 << 30, "peak": 0}

    def launch(self, purpose: str, work: Callable[[], T], waits: bool = True) -> Launched[T]:
        return _Done(work())

    def enter_thread(self) -> None:
        return None

    def follow(self, launched: Launched[object]) -> None:
        return None

    def mark(self) -> Marker:
        return _Done(None)

    def adopt(self, *tensors: Tensor) -> None:
        return None

    def to_host(self, tensor: Tensor) -> Tensor:
        return torch.zeros(tensor.shape, dtype=tensor.dtype)

    def to_device(self, tensor: Tensor) -> Tensor:
        self.uploads += 1
        return torch.empty_like(tensor, device=self.device)

    def record(self, work: Callable[[], T]) -> tuple[T, Callable[[], None]] | None:
        return None

    def allow_split_k(self, allowed: bool) -> None:
        return None

    def release_cached_memory(self) -> None:
        return None

    def is_out_of_memory(self, error: BaseException) -> bool:
        return False

    def is_fatal(self, error: BaseException) -> bool:
        return False
