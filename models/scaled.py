"""Weights of integers or float8 with scales, as bitsandbytes (8 bits), quanto and torchao store them, unpacked without
these packages and on any device.

| package | a matrix X.weight is | beside it |
|---|---|---|
| bitsandbytes | X.weight, int8 | X.SCB: the largest number of each row, which 127 stands for |
| quanto | X.weight._data, int8 or float8 | X.weight._scale |
| quanto, 4 and 2 bits | X.weight._data._data, several numbers a byte | X.weight._scale, X.weight._shift |
| torchao | X._weight_qdata, int8 or float8 | X._weight_scale, X._weight_zero_point |

Sources: bitsandbytes' Linear8bitLt, quanto's QTensor.save_to_state_dict, torchao's flatten_tensor_state_dict.
`tests/models/test_scaled.py` holds the numbers to those that the packages make of files that they wrote.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.errors import LoadError
from models.packed import PackedWeight, Stored

BESIDE = (".SCB", ".weight_format", "._scale", "._shift", "._weight_scale", "._weight_zero_point", ".output_scale")
"""Endings of what is stored beside matrices, and stays in its own dtype."""
_BITSANDBYTES, _QUANTO, _QUANTO_BITS, _TORCHAO = ".SCB", ".weight._data", ".weight._data._data", "._weight_qdata"
_LARGEST = 127
"""What bitsandbytes' int8 has for the largest number of a row."""


class ScaledWeight(PackedWeight):
    """A matrix whose rows, or equal pieces of them, have a scale each: (numbers - zero) * scale - shift.

    Args: values: numbers in the order of the matrix, int8 or float8; or uint8 with 8 / `bits` numbers a byte, the first
        of all bytes before the second of all. scale, zero, shift: one entry a piece; computed in the dtype of `scale`.
    """

    values: Tensor
    scale: Tensor
    zero: Tensor | None
    shift: Tensor | None

    def __init__(
        self,
        values: Tensor,
        scale: Tensor,
        shape: torch.Size,
        zero: Tensor | None = None,
        shift: Tensor | None = None,
        bits: int = 8,
    ) -> None:
        super().__init__()
        if scale.numel() == 0 or shape.numel() % scale.numel() or values.numel() * 8 != shape.numel() * bits:
            raise ValueError("sizes")
        self.register_buffer("values", values)
        self.register_buffer("scale", scale.reshape(-1, 1))
        self.register_buffer("zero", None if zero is None else zero.reshape(-1, 1))
        self.register_buffer("shift", None if shift is None else shift.reshape(-1, 1))
        self.shape = shape
        self._bits = bits

    def unpack(self, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        values, scale, zero, shift = (
            None if tensor is None else tensor.to(device or tensor.device, non_blocking=True)
            for tensor in (self.values, self.scale, self.zero, self.shift)
        )
        assert values is not None
        assert scale is not None
        numbers = _apart(values, self._bits).reshape(scale.numel(), -1).to(scale.dtype)
        numbers = numbers if zero is None else numbers - zero.to(scale.dtype)
        numbers = numbers * scale
        numbers = numbers if shift is None else numbers - shift
        return numbers.view(self.shape).to(dtype)

    def rows(self, start: int, stop: int) -> ScaledWeight:
        pieces, total = self.scale.numel(), self.shape[0]
        if self._bits != 8 or start * pieces % total or stop * pieces % total:
            raise LoadError(f"a packed matrix of {total} rows cannot be divided at row {start} or {stop}.")
        of_pieces = slice(start * pieces // total, stop * pieces // total)
        zero, shift = (None if each is None else each[of_pieces] for each in (self.zero, self.shift))
        shape = torch.Size((stop - start, self.shape[1]))
        return ScaledWeight(self.values.view(self.shape)[start:stop], self.scale[of_pieces], shape, zero, shift)


def with_scaled(tensors: dict[str, Stored], label: str) -> dict[str, Stored]:
    """Packed matrices in place of what they are stored as. Raises: LoadError."""
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith(BESIDE)}
    for name in tensors:
        ending, make = next(((end, make) for end, make in _MAKERS.items() if name.endswith(end)), ("", None))
        if make is None:
            continue
        layer = name.removesuffix(ending)
        plain.pop(name, None)
        try:
            plain[f"{layer}.weight"] = make(layer, tensors)
        except (KeyError, ValueError, RuntimeError, AssertionError) as exc:
            raise LoadError(f"{label}: {layer}.weight is packed, but what belongs to it is damaged.") from exc
    return plain


def _bitsandbytes(layer: str, tensors: dict[str, Stored]) -> ScaledWeight:
    values, largest = _tensor(tensors, f"{layer}.weight"), _tensor(tensors, f"{layer}.SCB")
    return ScaledWeight(values, largest.float() / _LARGEST, values.shape)


def _quanto(layer: str, tensors: dict[str, Stored]) -> ScaledWeight:
    values = _tensor(tensors, f"{layer}.weight._data")
    return ScaledWeight(values, _tensor(tensors, f"{layer}.weight._scale"), values.shape)


def _quanto_bits(layer: str, tensors: dict[str, Stored]) -> ScaledWeight:
    """Numbers a byte follow from the bytes, pieces and rows: a piece is as long as a row of the bytes."""
    values, scale, shift = (_tensor(tensors, f"{layer}.weight.{each}") for each in ("_data._data", "_scale", "_shift"))
    pieces, length = scale.numel(), values.shape[1]
    rows = _tensor(tensors, f"{layer}.bias").shape[0]  # nothing else tells how pieces make rows
    shape, bits = torch.Size((rows, pieces * length // rows)), 8 * values.shape[0] // pieces
    return ScaledWeight(values, scale, shape, shift=shift, bits=bits)


def _torchao(layer: str, tensors: dict[str, Stored]) -> ScaledWeight:
    values, scale = _tensor(tensors, f"{layer}._weight_qdata"), _tensor(tensors, f"{layer}._weight_scale")
    name = f"{layer}._weight_zero_point"
    zero = _tensor(tensors, name) if name in tensors else None
    return ScaledWeight(values, scale, values.shape, zero)


_MAKERS: dict[str, Callable[[str, dict[str, Stored]], ScaledWeight]] = {
    _BITSANDBYTES: _bitsandbytes,
    _QUANTO: _quanto,
    _QUANTO_BITS: _quanto_bits,
    _TORCHAO: _torchao,
}
"""By the ending that tells the package."""


def _tensor(tensors: dict[str, Stored], name: str) -> Tensor:
    tensor = tensors[name]
    assert isinstance(tensor, Tensor)
    return tensor


def _apart(values: Tensor, bits: int) -> Tensor:
    """One number an entry."""
    if bits == 8:
        return values
    mask = (1 << bits) - 1
    return torch.cat([values >> start & mask for start in range(0, 8, bits)])
