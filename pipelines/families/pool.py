"""The checkpoints a worker may serve, loaded when they are needed and unloaded when memory is short."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.accelerator import Accelerator
from models.auxiliaries import Auxiliary, load_auxiliary
from models.components import weight_bytes
from models.errors import LoadError
from models.float8 import chosen_linears, share
from models.loading import PartCache, outlook
from models.memory import Offload
from models.packed import is_packed
from models.quantization import is_insensitive, quantize
from models.registry import ModelSpec, siblings
from models.streaming import is_streamed
from models.tuning import AUTO, Tuning
from pipelines.adapters.cache import NO_ADAPTERS, AdapterCache
from pipelines.engine.acceleration import FLOAT8, AccelerationChoice, choose_acceleration
from pipelines.engine.request import RequestError
from pipelines.families.table import Checkpoint, CheckpointRunner, family_of
from pipelines.ops.compute import Note
from pipelines.protocol.params import ACCELERATIONS, GenerationParams

_FILL = 0.8
"""Share of a device's memory that weights may take, float8 copies included; the rest is for pictures under way."""

Held = CheckpointRunner | Auxiliary
"""What the pool keeps in memory, and lets go of."""

OnLoading = Callable[[str, str, float], None]
"""(model, stage, fraction done)"""


class ModelPool:
    """Runners by model name. Parts with the same files (text encoders, VAE) are loaded once and shared.

    What belongs to the given checkpoints (`models.registry.siblings`), and what helps them without drawing itself, is
    loaded by the first request that needs it.

    Args:
        memory_bytes: weights held at once; the least recently used checkpoint goes first. None holds all.
        acceleration: the highest level that requests get (see pipelines.engine.acceleration).
        adapters: those that requests may name.
        maps: whether files of weights may be mapped (see `models.loading.PartCache`).
    Attributes: specs: the given checkpoints that draw, by name. helpers: the given ones that do not.
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
        maps: bool = True,
    ) -> None:
        self.specs = {spec.name: spec for spec in specs if spec.draws}
        self.helpers = {spec.name: spec for spec in specs if not spec.draws}
        self._on_demand = self.helpers | {spec.name: spec for spec in (*siblings(specs), *_own_estimators(specs))}
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
        self._parts = PartCache(maps)
        self._held: OrderedDict[str, Held] = OrderedDict()
        self._float8: dict[str, CheckpointRunner] = {}
        self._copies = False
        """Whether `hold_float8` was asked for."""

    @property
    def on_demand(self) -> list[str]:
        """Names of the checkpoints that draw and are loaded by the first request for them."""
        return [name for name, spec in self._on_demand.items() if spec.draws]

    @property
    def loaded(self) -> list[str]:
        """Names of the checkpoints in memory that draw, least recently used first."""
        return list(self._runners)

    @property
    def _runners(self) -> dict[str, CheckpointRunner]:
        return {name: held for name, held in self._held.items() if not isinstance(held, Auxiliary)}

    def runner(self, group: str) -> CheckpointRunner:
        """The runner of a group of requests: of a model, loaded now if it has to be, or of its float8 copy.

        Raises: KeyError for a model that is neither among `specs` nor there on demand; LoadError for one of `specs`,
            RequestError for another.
        """
        name = group.removesuffix(FLOAT8)
        held = self._hold(name, self._load_runner)
        if isinstance(held, Auxiliary):
            raise KeyError(name)
        return self._float8.get(name, held) if group != name else held

    def auxiliary(self, name: str) -> Auxiliary:
        """A model that helps others draw, loaded now if it has to be; `name` may be a variant if any will do.

        Raises: KeyError if there is none; LoadError for one of `helpers`, RequestError for another.
        """
        if name not in self._on_demand:
            name = next((spec.name for spec in self._on_demand.values() if spec.variant == name), name)
        held = self._hold(name, self._load_auxiliary)
        if not isinstance(held, Auxiliary):
            raise KeyError(name)
        return held

    def _hold(
        self, name: str, load: Callable[[ModelSpec], CheckpointRunner | Auxiliary]
    ) -> CheckpointRunner | Auxiliary:
        if name in self._held:
            self._held.move_to_end(name)
            return self._held[name]
        spec = self.specs.get(name) or self._on_demand[name]
        self._make_room(spec)
        try:
            self._held[name] = load(spec)
        except LoadError as exc:
            if name in self.specs or name in self.helpers:
                raise
            self._note(str(exc))
            raise RequestError(f"the model {name} cannot be loaded here") from exc
        self._unload_over_budget()
        if self._copies:  # loaded again after an unload
            self.hold_float8()
        return self._held[name]

    def _load_runner(self, spec: ModelSpec) -> CheckpointRunner:
        if not spec.draws:
            raise KeyError(spec.name)
        components = family_of(spec).load(
            spec,
            self._accelerator,
            self._dtype,
            self._quantization,
            lambda stage, fraction: self._on_loading(spec.name, stage, fraction),
            self._parts,
            offload=self._offload,
            tuning=self._tuning,
        )
        return self._run(components)

    def _load_auxiliary(self, spec: ModelSpec) -> Auxiliary:
        if spec.draws:
            raise KeyError(spec.name)
        return load_auxiliary(spec, self._accelerator, self._dtype)

    def choose_acceleration(self, params: GenerationParams) -> AccelerationChoice:
        """How this worker draws a request."""
        spec = self.specs.get(params.model) or self._on_demand.get(params.model)
        caches_steps = spec is None or family_of(spec).caches_steps
        most = self._acceleration if caches_steps else min(self._acceleration, "regular", key=ACCELERATIONS.index)
        if self._quantization != "none":  # float8 weights are all that the model has here
            return replace(choose_acceleration(params, most, has_float8=True), group=params.model)
        return choose_acceleration(params, most, params.model in self._float8)

    def hold_float8(self) -> None:
        """Copy loaded models into float8 weights, where that pays, all models are in memory and room is left.

        A copy shares whatever stays exact with its original.
        """
        self._copies = True
        if self._acceleration == "none" or self._quantization != "none" or not self._accelerator.has_float8:
            return
        for name, exact in self._runners.items():
            part = family_of(exact.components.spec).float8_part
            if part is None or name in self._float8 or not self._runners.keys() >= self.specs.keys():
                continue
            module = exact.components.modules[part]
            if not is_packed(module) and not is_streamed(module) and self._has_room(module):
                self._on_loading(name, "float8 weights", 0.99)
                self._float8[name] = self._float8_copy(exact, part)

    def _float8_copy(self, exact: CheckpointRunner, part: str) -> CheckpointRunner:
        components: Any = exact.components
        copy = share(components.modules[part])
        quantize(copy, "fp8", self._accelerator)
        return self._run(replace(components, **{part: copy}))

    def _run(self, components: Checkpoint) -> CheckpointRunner:
        run = family_of(components.spec).run
        return run(
            components, self._accelerator, self._tuning, self._note, adapters=self._adapters, find=self.auxiliary
        )

    def _has_room(self, module: nn.Module) -> bool:
        copy = sum(linear.weight.numel() for linear in chosen_linears(module, is_insensitive).values())
        if self._memory_bytes is not None:
            return self.weights() + copy <= self._memory_bytes
        memory = self._accelerator.memory()
        return memory["used"] + copy <= _FILL * memory["total"]

    @property
    def adapter_bytes(self) -> int:
        """Of all adapters held."""
        return self._adapters.nbytes

    def weights(self) -> int:
        """Bytes of all weights held, adapters too, shared parts counted once."""
        return weight_bytes(*self._modules()) + self.adapter_bytes

    def _modules(self) -> Iterator[nn.Module]:
        for held in (*self._held.values(), *self._float8.values()):
            yield from (held if isinstance(held, Auxiliary) else held.components).modules.values()

    def load_all(self) -> None:
        """Load what was given, as far as it is not in memory, float8 copies included. Raises: LoadError."""
        for name in self.specs:
            self.runner(name)
        for name in self.helpers:
            self.auxiliary(name)
        self.hold_float8()

    def unload(self) -> None:
        """Free the device; what is asked for next is loaded again. Nothing may be under way."""
        self._held.clear()
        self._float8.clear()
        for name in (*self.specs, *self._on_demand):
            self._adapters.forget(name)
        self._parts.keep_only(set())
        self._accelerator.release_cached_memory()

    def _make_room(self, spec: ModelSpec) -> None:
        """Before a checkpoint is loaded, so that the old one and the new one are not held at once."""
        if self._memory_bytes is None or not self._held or not spec.draws:
            return
        added, shared = outlook(spec, self._dtype or self._accelerator.default_dtype, self._parts)
        while self._held and self.weights() + added > self._memory_bytes:
            self._unload_oldest(shared)

    def _unload_over_budget(self) -> None:
        while self._memory_bytes is not None and len(self._held) > 1 and self.weights() > self._memory_bytes:
            self._unload_oldest()

    def _unload_oldest(self, keep: AbstractSet[int] = frozenset()) -> None:
        """Args: keep: `id` of parts that are wanted again at once."""
        name, _ = self._held.popitem(last=False)
        self._float8.pop(name, None)
        self._adapters.forget(name)
        self._parts.keep_only({id(module) for module in self._modules()} | keep)
        self._accelerator.release_cached_memory()


def _own_estimators(specs: Sequence[ModelSpec]) -> list[ModelSpec]:
    """Depth estimators that checkpoints bring in their own folders."""
    folders = ((spec, Path(spec.source) / "depth_estimator") for spec in (*specs, *siblings(specs)))
    return [
        ModelSpec(f"{spec.name}/depth_estimator", str(folder), variant="depth-estimator", licence=spec.licence)
        for spec, folder in folders
        if (folder / "config.json").is_file()
    ]
