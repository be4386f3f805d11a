"""The checkpoints a worker may serve, loaded when they are needed and unloaded when memory is short."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch

from models.accelerator import Accelerator
from models.components import weight_bytes
from models.loading import PartCache, load
from models.registry import ModelSpec
from pipelines.runner import FluxRunner

OnLoading = Callable[[str, str, float], None]
"""(model, stage, fraction done)"""


class ModelPool:
    """Runners by model name. Parts with the same files (text encoders, VAE) are loaded once and shared.

    Args: memory_bytes: weights held at once; the least recently used checkpoint goes first. None holds all.
    """

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        accelerator: Accelerator,
        dtype: torch.dtype | None = None,
        quantization: str = "none",
        memory_bytes: int | None = None,
        on_loading: OnLoading = lambda model, stage, fraction: None,
    ) -> None:
        self.specs = {spec.name: spec for spec in specs}
        self._accelerator = accelerator
        self._dtype = dtype
        self._quantization = quantization
        self._memory_bytes = memory_bytes
        self._on_loading = on_loading
        self._parts = PartCache()
        self._loaded: OrderedDict[str, FluxRunner] = OrderedDict()

    @property
    def loaded(self) -> list[str]:
        """Names of the checkpoints in memory, least recently used first."""
        return list(self._loaded)

    def runner(self, name: str) -> FluxRunner:
        """The runner of a model, loaded now if it has to be. Raises: KeyError, LoadError."""
        if name in self._loaded:
            self._loaded.move_to_end(name)
            return self._loaded[name]
        spec = self.specs[name]
        components = load(
            spec,
            self._accelerator,
            self._dtype,
            self._quantization,
            lambda stage, fraction: self._on_loading(name, stage, fraction),
            self._parts,
        )
        self._loaded[name] = FluxRunner(components, self._accelerator)
        self._unload_over_budget()
        return self._loaded[name]

    def weights(self) -> int:
        """Bytes of all weights held, shared parts counted once."""
        modules = {id(m): m for runner in self._loaded.values() for m in runner.components.modules.values()}
        return sum(weight_bytes(module) for module in modules.values())

    def _unload_over_budget(self) -> None:
        while self._memory_bytes is not None and len(self._loaded) > 1 and self.weights() > self._memory_bytes:
            self._loaded.popitem(last=False)
            held = {id(m) for runner in self._loaded.values() for m in runner.components.modules.values()}
            self._parts.keep_only(held)
            self._accelerator.release_cached_memory()
