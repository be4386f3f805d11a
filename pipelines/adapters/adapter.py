"""One LoRA fitted to one model: low-rank products by the linear that they add to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.adapter_files import AdapterError
from models.adapters.reading import AdapterWeights, LowRank, check_fit
from models.float8 import Float8Linear
from models.packed import PackedLinear


@dataclass(frozen=True, slots=True)
class Part:
    """The second matrix of a product. Args: ranks, columns: which of the first's results it reads, which of the
    linear's outputs it adds to; None for all. up: (ranks, columns)."""

    up: Tensor
    ranks: slice | None = None
    columns: slice | None = None


@dataclass(frozen=True, slots=True)
class Product:
    """What one adapter adds to one linear, which may be several joined ones. Matrices lie as they are multiplied.

    Args: down: (in_features, sum of ranks).
    """

    down: Tensor
    parts: tuple[Part, ...]

    def add(self, x: Tensor, output: Tensor, scale: float) -> None:
        """output += scale * x down up, in place. x: (S, in_features), output: (S, out_features)."""
        hidden = x @ self.down
        for part in self.parts:
            # Slices cost a small model as much as its products.
            read = hidden if part.ranks is None else hidden[:, part.ranks]
            to = output if part.columns is None else output[:, part.columns]
            to.addmm_(read, part.up, alpha=scale)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.down, *(part.up for part in self.parts)


@dataclass(frozen=True, eq=False, slots=True)
class FittedAdapter:
    """On the model's device and in its dtype. Args: text_encoder: products by linear of the CLIP text encoder."""

    transformer: Mapping[str, Product]
    text_encoder: Mapping[str, Product]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        products = (*self.transformer.values(), *self.text_encoder.values())
        return tuple(tensor for product in products for tensor in product.tensors)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


Uses = tuple[tuple[FittedAdapter, float], ...]
"""The adapters of one request with their scales, in its order."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a layer of diffusers' model is: the linear that computes it, and which of its output columns it has."""

    linear: str
    column: int
    columns: int
    inputs: int
    is_whole: bool


_JOINED = {
    "attn.to_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "attn.to_added_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "proj_in": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
}
"""What `models.fusion` makes one linear of, in the order of its columns."""


def linears(module: nn.Module) -> dict[str, nn.Linear | Float8Linear | PackedLinear]:
    """Every linear by name."""
    kinds = nn.Linear | Float8Linear | PackedLinear
    return {name: part for name, part in module.named_modules() if isinstance(part, kinds)}


def targets(module: nn.Module) -> dict[str, Target]:
    """Every layer that a LoRA may name, by its name in diffusers' own model."""
    found: dict[str, Target] = {}
    for name, linear in linears(module).items():
        columns, inputs = linear.weight.shape
        joined = next((ending for ending in _JOINED if name.endswith(f".{ending}")), None)
        if joined is None:
            found[name] = Target(name, 0, columns, inputs, True)
            continue
        block, column = name.removesuffix(joined), 0
        for part in _JOINED[joined]:
            width = columns - 3 * inputs if part == "proj_mlp" else inputs
            found[block + part] = Target(name, column, width, inputs, False)
            column += width
    return found


def fit(
    weights: AdapterWeights, transformer: nn.Module, text_encoder: nn.Module, device: torch.device, dtype: torch.dtype
) -> FittedAdapter:
    """Match every matrix to a layer of this model. Raises: AdapterError naming the first that fits none."""
    return FittedAdapter(
        transformer=_products(weights.transformer, targets(transformer), device, dtype),
        text_encoder=_products(_clip_names(weights.text_encoder, text_encoder), targets(text_encoder), device, dtype),
    )


def _clip_names(parts: Mapping[str, LowRank], text_encoder: nn.Module) -> dict[str, LowRank]:
    """Names with or without the `text_model.` that transformers' CLIP has in some versions."""
    has_prefix = any(name.startswith("text_model.") for name, _ in text_encoder.named_modules())
    prefix = "text_model." if has_prefix else ""
    return {prefix + name.removeprefix("text_model."): part for name, part in parts.items()}


def _products(
    parts: Mapping[str, LowRank], layers: Mapping[str, Target], device: torch.device, dtype: torch.dtype
) -> dict[str, Product]:
    by_linear: dict[str, list[tuple[Target, LowRank]]] = {}
    for name, part in parts.items():
        target = layers.get(name)
        check_fit(name, part, None if target is None else (target.columns, target.inputs))
        by_linear.setdefault(layers[name].linear, []).append((layers[name], part))
    return {linear: _product(pairs, device, dtype) for linear, pairs in by_linear.items()}


def _product(pairs: Sequence[tuple[Target, LowRank]], device: torch.device, dtype: torch.dtype) -> Product:
    """One product for a linear; parts whose first matrices are equal, as kohya's joined layers leave them, share it."""
    downs: list[Tensor] = []
    spans: list[slice] = []
    for _, pair in pairs:
        index = next((i for i, down in enumerate(downs) if torch.equal(down, pair.down)), len(downs))
        if index == len(downs):
            downs.append(pair.down)
        first = sum(len(down) for down in downs[:index])
        spans.append(slice(first, first + len(pair.down)))
    parts = [
        Part(
            _placed(pair.up.t(), device, dtype),
            ranks=span if len(downs) > 1 else None,
            columns=None if target.is_whole else slice(target.column, target.column + target.columns),
        )
        for span, (target, pair) in zip(spans, pairs, strict=True)
    ]
    return Product(_placed(torch.cat(downs).t(), device, dtype), tuple(parts))


def _placed(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    placed = tensor.to(device, dtype).contiguous()
    if dtype == torch.float16 and not bool(torch.isfinite(placed).all()):
        raise AdapterError("its values are too large for float16, in which this model runs")
    return placed
