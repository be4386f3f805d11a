"""A model whose linears take adapters along: the base product once for all rows, then a low-rank one a segment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Generic, TypeVar

from torch import Tensor, nn

from models.float8 import share
from pipelines.adapters.adapter import Product, Uses, linears
from pipelines.adapters.binding import Stream, bound_to

M = TypeVar("M", bound=nn.Module)


class AdaptedLinear(nn.Module):
    """A linear, plain or float8, and what the adapters bound around the forward add to its result."""

    def __init__(self, name: str, base: nn.Module, stream: Stream) -> None:
        super().__init__()
        self.base = base
        self.name = name
        self.stream = stream

    def forward(self, x: Tensor) -> Tensor:
        """(S, in_features) -> (S, out_features), as the base computes it for all rows at once."""
        output: Tensor = self.base(x)
        for start, stop, uses in bound_to(self.stream):
            for adapter, scale in uses:
                product = adapter.transformer.get(self.name)
                if product is not None:
                    product.add(x[start:stop], output[start:stop], scale)
        return output


class Adaptable(Generic[M]):
    """A transformer, and once a request has adapters its twin, which shares all weights and takes them along.

    Steps without adapters run the original: they pay nothing and draw what they always drew.
    """

    def __init__(self, transformer: M) -> None:
        self._transformer = transformer
        self._twin: M | None = None

    def for_pack(self, uses: Sequence[object]) -> M:
        """What to call where these adapters, if any, take part."""
        if not uses:
            return self._transformer
        if self._twin is None:
            self._twin = with_adapters(self._transformer)
        return self._twin


def with_adapters(transformer: M) -> M:
    """A twin whose linears take adapters along, over the same weights."""
    twin = share(transformer)
    for name, linear in linears(twin).items():
        twin.set_submodule(name, AdaptedLinear(name, linear, stream_of(name)))
    return twin


_OF_A_ROW = ("norm_out.", "time_text_embed.", "time_guidance_embed.")


def stream_of(name: str) -> Stream:
    """What the rows are that the linear of this name sees in a pack."""
    if ".norm" in name or "_stream_modulation" in name or name.startswith(_OF_A_ROW):
        return "row"
    if name.startswith("single_transformer_blocks."):
        return "joint"
    is_text = any(part in name for part in (".ff_context.", ".attn.add_", ".attn.to_add"))
    return "text" if is_text or name.startswith("context_embedder") else "image"


@contextmanager
def text_adapted(text_encoder: nn.Module, uses: Uses) -> Iterator[None]:
    """Inside, the text encoder takes the adapters along. One caller at a time: the module itself is changed.

    By hooks and not by a twin: an encoder that waits on the host keeps its weights where a copy would not find them.
    """
    hooks = [
        text_encoder.get_submodule(name).register_forward_hook(partial(_add_behind, product, scale))
        for adapter, scale in uses
        for name, product in adapter.text_encoder.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _add_behind(product: Product, scale: float, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """A forward hook that adds a product to a linear's result."""
    result = output.clone()
    product.add(inputs[0].flatten(0, -2), result.view(-1, result.shape[-1]), scale)
    return result
