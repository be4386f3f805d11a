"""The checkpoints a worker may serve, loaded when they are needed and unloaded when memory is short."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from models.accelerator import Accelerator
from models.components import weight_bytes
from models.float8 import chosen_linears, share
from models.loading import PartCache
from models.memory import Offload
from models.quantization import is_insensitive, quantize
from models.registry import ModelSpec
from models.tuning import AUTO, Tuning
from pipelines.adapters.cache import NO_ADAPTERS, AdapterCache
from pipelines.engine.acceleration import FLOAT8, AccelerationChoice, choose_acceleration
from pipelines.families.table import Checkpoint, CheckpointRunner, family_of
from pipelines.ops.compute import Note
from pipelines.protocol.params import GenerationParams

_FILL = 0.8
"""Share of a device's memory that weights may take, float8 copies included; the rest is for pictures under way."""

OnLoading = Callable[[str, str, float], None]
"""(model, stage, fraction done)"""


class ModelPool:
    """Runners by model name. Parts with the same files (text encoders, VAE) are loaded once and shared.

    Args:
        memory_bytes: weights held at once; the least recently used checkpoint goes first. None holds all.
        acceleration: the highest level that requests get (see pipelines.engine.acceleration).
        adapters: those that requests may name.
    """

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        accelerator: Accelerator,
        dtype: torch.dtype | None = None,
        quantization: str = "none",
        memory_bytes: int | None = None,
        on_loading: OnLoading = lambda model, stage, fraction: None,
        acceleration: str = "high",
        offload: Offload = "none",
        tuning: Tuning = AUTO,
        note: Note = lambda sentence: None,
        adapters: AdapterCache = NO_ADAPTERS,
    ) -> None:
        self.specs = {spec.name: spec for spec in specs}
        self._accelerator = accelerator
        self._dtype = dtype
        self._quantization = quantization
        self._memory_bytes = memory_bytes
        self._on_loading = on_loading
        self._acceleration = acceleration
        self._offload = offload
        self._tuning = tuning
        self._note = note
        self._adapters = adapters
        self._parts = PartCache()
        self._loaded: OrderedDict[str, CheckpointRunner] = OrderedDict()
        self._float8: dict[str, CheckpointRunner] = {}

    @property
    def loaded(self) -> list[str]:
        """Names of the checkpoints in memory, least recently used first."""
        return list(self._loaded)

    def runner(self, group: str) -> CheckpointRunner:
        """The runner of a group of requests: of a model, loaded now if it has to be, or of its float8 copy.

        Raises: KeyError for a model that is not among `specs`; LoadError.
        """
        name = group.removesuffix(FLOAT8)
        if name in self._loaded:
            self._loaded.move_to_end(name)
            return self._float8.get(name, self._loaded[name]) if group != name else self._loaded[name]
        spec = self.specs[name]
        components = family_of(spec).load(
            spec,
            self._accelerator,
            self._dtype,
            self._quantization,
            lambda stage, fraction: self._on_loading(name, stage, fraction),
            self._parts,
            offload=self._offload,
            tuning=self._tuning,
        )
        self._loaded[name] = self._run(components)
        self._unload_over_budget()
        return self._loaded[name]

    def choose_acceleration(self, params: GenerationParams) -> AccelerationChoice:
        """How this worker draws a request."""
        if self._quantization != "none":  # float8 weights are all that the model has here
            choice = choose_acceleration(params, self._acceleration, has_float8=True)
            return replace(choice, group=params.model)
        return choose_acceleration(params, self._acceleration, params.model in self._float8)

    def hold_float8(self) -> None:
        """Copy loaded models into float8 weights, where that pays, all models are in memory and room is left.

        A copy shares whatever stays exact with its original.
        """
        if self._acceleration == "none" or self._quantization != "none" or not self._accelerator.has_float8:
            return
        for name, exact in self._loaded.items():
            part = family_of(self.specs[name]).float8_part
            if part is None or len(self._loaded) < len(self.specs):
                continue
            module = exact.components.modules[part]
            if self._has_room(module):
                self._on_loading(name, "float8 weights", 0.99)
                self._float8[name] = self._float8_copy(exact, part)

    def _float8_copy(self, exact: CheckpointRunner, part: str) -> CheckpointRunner:
        components: Any = exact.components
        copy = share(components.modules[part])
        quantize(copy, "fp8", self._accelerator)
        return self._run(replace(components, **{part: copy}))

    def _run(self, components: Checkpoint) -> CheckpointRunner:
        run = family_of(components.spec).run
        return run(components, self._accelerator, self._tuning, self._note, adapters=self._adapters)

    def _has_room(self, module: nn.Module) -> bool:
        copy = sum(linear.weight.numel() for linear in chosen_linears(module, is_insensitive).values())
        if self._memory_bytes is not None:
            return self.weights() + copy <= self._memory_bytes
        memory = self._accelerator.memory()
        return memory["used"] + copy <= _FILL * memory["total"]

    def weights(self) -> int:
        """Bytes of all weights held, adapters too, shared parts counted once."""
        runners = (*self._loaded.values(), *self._float8.values())
        modules = (module for runner in runners for module in runner.components.modules.values())
        return weight_bytes(*modules) + self._adapters.nbytes

    def _unload_over_budget(self) -> None:
        while self._memory_bytes is not None and len(self._loaded) > 1 and self.weights() > self._memory_bytes:
            name, _ = self._loaded.popitem(last=False)
            self._float8.pop(name, None)
            self._adapters.forget(name)
            held = {id(m) for runner in self._loaded.values() for m in runner.components.modules.values()}
            self._parts.keep_only(held)
            self._accelerator.release_cached_memory()
