"""Counts what a GPU would be given to do, while tensors on the `meta` device stand for its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime import JITFunction
from triton.runtime.interpreter import InterpretedFunction

aten = torch.ops.aten
PRODUCTS = {aten.linear.default, aten.mm.default, aten.addmm.default, aten.bmm.default, aten._scaled_mm.default}
ATTENTION = aten.scaled_dot_product_attention.default
_FREE = {
    aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default, aten.new_empty.default,
    aten.detach.default, aten.detach_.default, aten.lift_fresh.default, aten.set_.source_Storage,
}  # fmt: skip
"""Reach no device, and are not told by their schema to be views."""


@dataclass(frozen=True)
class Call:
    """One launch of a Triton kernel, as its caller wrote it."""

    kernel: Any
    args: tuple[Any, ...]
    options: dict[str, Any]


@dataclass
class Tally:
    """What was counted.

    Args:
        calls: launches of Triton's kernels.
        launches: kernels by name. moved: bytes that those other than matrix products and attention read and wrote.
        flop: of matrix products. uploads: copies from the host that nobody waits for. waits: what the host waits for.
    """

    calls: list[Call] = field(default_factory=list)
    launches: Counter[str] = field(default_factory=Counter)
    moved: Counter[str] = field(default_factory=Counter)
    flop: float = 0.0
    uploads: int = 0
    waits: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.launches.total()

    @property
    def products(self) -> int:
        return sum(self.launches[str(product)] for product in PRODUCTS)

    @property
    def gigabytes(self) -> float:
        return self.moved.total() / 1e9

    def launch(self, name: str, *tensors: Tensor) -> None:
        """One kernel that reads or writes each of these once."""
        self.launches[name] += 1
        self.moved[name] += sum(tensor.nbytes for tensor in tensors)


class CountingMode(TorchDispatchMode):
    """Counts every operation on `meta` tensors, and makes up what the host would have read from the device.

    A product or an attention counts as one kernel; composite operations count as what they are made of.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tally = Tally()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is ATTENTION and args[0].is_meta:
            return self._attention(*args[:3])
        if func is aten.dropout.default and not args[2]:  # what it is made of here would copy
            return args[0]
        if func not in PRODUCTS:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_device = any(tensor.is_meta for tensor in tensors)
        target = kwargs.get("device")
        if func is aten._to_copy.default and target is not None:
            if on_device and target.type == "cpu":
                return self._read(func, args[0], kwargs)
            if not on_device and target.type == "meta":
                self._write(func, non_blocking=bool(kwargs.get("non_blocking")))
                return func(*args, **kwargs)
        if func is aten.copy_.default and not args[1].is_meta and args[0].is_meta:
            self._write(func, non_blocking=len(args) > 2 and bool(args[2]))
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default and on_device:
            self.tally.waits.append(str(func))
            return 0
        if on_device and _makes_any_size(func, args):
            raise AssertionError(f"{func}: the size of its result is known to the device alone")
        result = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if any(tensor.is_meta for tensor in (*tensors, *made)) and not _is_free(func):
            self._count(func, tensors, made)
        return result

    def _attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One kernel; its result lies in memory as that of the fused kernels: token after token."""
        self.tally.launches[str(ATTENTION)] += 1
        batch, heads, tokens, dim = query.shape
        return torch.empty((batch, tokens, heads, dim), dtype=query.dtype, device="meta").transpose(1, 2)

    def _read(self, func: Any, tensor: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """What the host reads, made up: zeros."""
        self.tally.waits.append(f"{func} to the host")
        return torch.zeros(tensor.shape, dtype=kwargs.get("dtype") or tensor.dtype)

    def _write(self, func: Any, non_blocking: bool) -> None:
        if non_blocking:
            self.tally.uploads += 1
        else:
            self.tally.waits.append(f"{func} from pageable memory")

    def _count(self, func: Any, read: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        if func in PRODUCTS:
            self.tally.launches[str(func)] += 1
            inner = read[1].shape[-1] if func is aten.addmm.default else read[0].shape[-1]
            self.tally.flop += 2 * made[0].numel() * inner
        else:
            self.tally.launch(str(func), *read, *made)


def _makes_any_size(func: Any, args: tuple[Any, ...]) -> bool:
    if func is aten.index.Tensor:
        return any(isinstance(index, Tensor) and index.dtype is torch.bool for index in args[1])
    return func in (aten.nonzero.default, aten.masked_select.default)


def _is_free(func: Any) -> bool:
    """Whether it launches nothing: allocations, and views by their schema."""
    returned = [value.alias_info for value in func._schema.returns]
    return func in _FREE or any(info is not None and not info.is_write for info in returned)


@contextmanager
def counting() -> Iterator[Tally]:
    """Count what runs inside, Triton's kernels included: they are not run."""
    mode = CountingMode()

    def launcher(kernel: Any, grid: object) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            mode.tally.calls.append(Call(kernel, args, options))
            mode.tally.launch(kernel.__name__, *(value for value in args if isinstance(value, Tensor)))

        return launch

    with (
        mock.patch.object(JITFunction, "__getitem__", launcher),
        mock.patch.object(InterpretedFunction, "__getitem__", launcher),
        mode,
    ):
        yield mode.tally
