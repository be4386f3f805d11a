"""The checkpoints a worker may serve, loaded when they are needed and unloaded when memory is short."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from models.accelerator import Accelerator
from models.auxiliaries import Auxiliary, load_auxiliary
from models.components import weight_bytes
from models.construction import CONSTRUCTION
from models.errors import LoadError
from models.float8 import chosen_linears, share
from models.loading import PartCache, outlook
from models.memory import Offload
from models.packed import is_packed
from models.quantization import is_insensitive, quantize
from models.registry import ModelSpec, own_estimator, siblings
from models.streaming import is_streamed
from models.tuning import AUTO, Tuning
from pipelines.adapters.cache import NO_ADAPTERS, AdapterCache
from pipelines.engine.acceleration import FLOAT8, AccelerationChoice, choose_acceleration, may_be_coarse
from pipelines.engine.request import RequestError
from pipelines.families.split import Splittable, Team
from pipelines.families.table import Checkpoint, CheckpointRunner, family_of
from pipelines.ops.compute import Note
from pipelines.protocol.frames import Frame, Loading, Sleep, Wake
from pipelines.protocol.params import ACCELERATIONS, GenerationParams

_FILL = 0.8
"""Share of a device's memory that weights may take, float8 copies included; the rest is for pictures under way."""

LOAD_MS = 10_000.0
"""Guess of what it takes to load a checkpoint that was never loaded: tens of gigabytes from the page cache."""

RETRY_S = 60.0
"""A checkpoint on demand that could not be loaded is not tried again for so long: its requests fail at once."""

Held = CheckpointRunner | Auxiliary
"""What the pool keeps in memory, and lets go of."""

Load = Callable[[ModelSpec], Held]

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
        offers: checkpoints that requests may have loaded. With them `memory_bytes` is no more than the device has.
        team: the processes that steps are shared out over; None computes them here alone.
    Attributes:
        specs: the given checkpoints that draw, by name. helpers: the given ones that do not.
        busy: names (or variants, see `auxiliary`) of those that requests under way take. Where memory is short, others
            go before them, and they only when a request could not be drawn else.
    """

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        accelerator: Accelerator,
        dtype: torch.dtype | None = None,
        quantization: str = "none",
        memory_bytes: int | None = None,
        on_loading: OnLoading = lambda model, stage, fraction: None,
        acceleration: str = ACCELERATIONS[-1],
        offload: Offload = "none",
        tuning: Tuning = AUTO,
        note: Note = lambda sentence: None,
        adapters: AdapterCache = NO_ADAPTERS,
        maps: bool = True,
        offers: Sequence[ModelSpec] = (),
        clock: Callable[[], float] = time.monotonic,
        team: Team | None = None,
    ) -> None:
        self.busy: Callable[[], AbstractSet[str]] = frozenset
        self.specs = {spec.name: spec for spec in specs if spec.draws}
        self.helpers = {spec.name: spec for spec in specs if not spec.draws}
        known = (*specs, *offers)
        brought = (*offers, *siblings(known), *_own_estimators(known))
        self._on_demand = self.helpers | {spec.name: spec for spec in brought}
        self._accelerator = accelerator
        self._dtype = dtype
        self._quantization = quantization
        all_memory = int(_FILL * accelerator.memory()["total"]) if offers else None
        self._memory_bytes = all_memory if memory_bytes is None else memory_bytes
        self._on_loading = on_loading
        self._acceleration = acceleration
        self._offload = offload
        self._tuning = tuning
        self._note = note
        self._adapters = adapters
        self._team = team
        self._parts = PartCache(maps)
        self._held: OrderedDict[str, Held] = OrderedDict()
        self._float8: dict[str, CheckpointRunner] = {}
        self._copies = False
        """Whether `hold_float8` was asked for."""
        self._is_over = False
        """Whether more is held than `memory_bytes`, because all of it is busy."""
        self._clock = clock
        self._load_ms: dict[str, float] = {}
        self._failed: dict[str, float] = {}
        """When a checkpoint on demand could not be loaded."""
        self._thread = ThreadPoolExecutor(1, "loading", self._enter_thread)
        self._loading: tuple[str, Future[Held]] | None = None

    def _enter_thread(self) -> None:
        torch.set_grad_enabled(False)
        self._accelerator.enter_thread()

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
        held = self._hold(name, self._load_runner, draws=True)
        assert not isinstance(held, Auxiliary)
        return self._float8.get(name, held) if group != name else held

    def waits_for(self, name: str) -> bool:
        """Whether a request for this checkpoint waits until it is loaded, which is worth beginning beside the steps.

        Args: name: of one that draws or helps; or a variant, as for `auxiliary`.
        """
        spec = self._spec(name)
        return spec is not None and spec.name not in self._held and not self._is_hopeless(spec.name)

    def meant(self, name: str) -> str:
        """The name of the checkpoint that `waits_for` would wait for; an unknown one as it is."""
        spec = self._spec(name)
        return name if spec is None else spec.name

    def switch_ms(self, group: str) -> float:
        """What has to be waited for before a group of requests can be drawn: its model's load, where it is not held."""
        name = group.removesuffix(FLOAT8)
        return 0.0 if name in self._held else self._load_ms.get(name, LOAD_MS)

    def begin(self, name: str, notify: Callable[[], object] = lambda: None) -> bool:
        """Begin to load a checkpoint in a thread of its own, while others draw.

        Args: name: see `waits_for`. notify: called from another thread when `keep_loaded` has something to keep.
        Returns: False, and nothing is begun, where room is made by letting a busy one go only.
        """
        self._finish_loading()
        spec = self._spec(name)
        assert spec is not None
        if not self._make_room(spec, spares_busy=True):
            return False
        self._on_loading(spec.name, "begins", 0.0)
        future = self._thread.submit(self._attempt, spec, self._load_runner if spec.draws else self._load_auxiliary)
        self._loading = spec.name, future
        future.add_done_callback(lambda _: notify())
        return True

    @property
    def is_loading(self) -> bool:
        """Whether a checkpoint is being loaded beside the steps."""
        return self._loading is not None

    def keep_loaded(self) -> None:
        """Take over the checkpoint of `begin` once it is loaded, or known not to be: `runner` and `auxiliary` have it,
        or raise why not. And let go of what there is no room for, as soon as it is idle."""
        if self._loading is not None and self._loading[1].done():
            self._finish_loading()
        if self._is_over and self._spare():
            self._unload_over_budget()

    def _finish_loading(self) -> None:
        if self._loading is None:
            return
        (name, future), self._loading = self._loading, None
        CONSTRUCTION.await_end(future)
        if not isinstance(future.exception(), RequestError):
            self._keep(name, future.result())

    def auxiliary(self, name: str) -> Auxiliary:
        """A model that helps others draw, loaded now if it has to be; `name` may be a variant if any will do.

        Raises: KeyError if there is none; LoadError for one of `helpers`, RequestError for another.
        """
        held = self._hold(self.meant(name), self._load_auxiliary, draws=False)
        assert isinstance(held, Auxiliary)
        return held

    def _spec(self, name: str) -> ModelSpec | None:
        """The checkpoint of this name, or any of this variant that helps."""
        found, helping = self.specs.get(name) or self._on_demand.get(name), self._on_demand.values()
        return found or next((spec for spec in helping if spec.variant == name and not spec.draws), None)

    def _hold(self, name: str, load: Load, draws: bool) -> Held:
        spec = self.specs.get(name) or self._on_demand[name]
        if spec.draws != draws:
            raise KeyError(name)
        if name not in self._held:
            self._finish_loading()
        if name in self._held:
            self._held.move_to_end(name)
            return self._held[name]
        if self._is_hopeless(name):
            raise RequestError(_cannot_be_loaded(name))
        self._make_room(spec, spares_busy=False)
        self._keep(name, self._attempt(spec, load))
        return self._held[name]

    def _attempt(self, spec: ModelSpec, load: Load) -> Held:
        """Load it. Raises: LoadError for what was given at the start; for another RequestError, and tells why."""
        began = self._clock()
        try:
            held = load(spec)
            self._load_ms[spec.name] = 1e3 * (self._clock() - began)
            return held
        except Exception as exc:
            if spec.name in self.specs or spec.name in self.helpers or self._accelerator.is_fatal(exc):
                raise
            self._failed[spec.name] = self._clock()
            self._note(str(exc) if isinstance(exc, LoadError) else f"model {spec.name} cannot be loaded: {exc!r}")
            raise RequestError(_cannot_be_loaded(spec.name)) from exc

    def _is_hopeless(self, name: str) -> bool:
        """Whether it could not be loaded a moment ago."""
        return self._clock() - self._failed.get(name, -RETRY_S) < RETRY_S

    def _keep(self, name: str, held: Held) -> None:
        self._held[name] = held
        self._failed.pop(name, None)
        self._unload_over_budget()
        if self._copies:  # loaded again after an unload
            self.hold_float8()

    def _load_runner(self, spec: ModelSpec) -> CheckpointRunner:
        self._tell(Loading(spec.name, "", 0.0))
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
        return self._run(components, spec.name)

    def _tell(self, frame: Frame) -> None:
        if self._team is not None:
            self._team.tell(frame)

    def _load_auxiliary(self, spec: ModelSpec) -> Auxiliary:
        return load_auxiliary(spec, self._accelerator, self._dtype)

    def choose_acceleration(self, params: GenerationParams) -> AccelerationChoice:
        """How this worker draws a request."""
        spec = self.specs.get(params.model) or self._on_demand.get(params.model)
        # Which steps are skipped would have to be decided by all that share them out.
        caches_steps = self._team is None and (spec is None or family_of(spec).caches_steps)
        most = self._acceleration if caches_steps else min(self._acceleration, "regular", key=ACCELERATIONS.index)
        can_be_coarse = spec is not None and family_of(spec).draws_coarse and may_be_coarse(params, spec.native_pixels)
        if self._quantization != "none":  # float8 weights are all that the model has here
            choice = choose_acceleration(params, most, has_float8=True, can_be_coarse=can_be_coarse)
            return replace(choice, group=params.model)
        return choose_acceleration(params, most, params.model in self._float8, can_be_coarse)

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
        return self._run(replace(components, **{part: copy}), components.spec.name + FLOAT8)

    def _run(self, components: Checkpoint, group: str) -> CheckpointRunner:
        run = family_of(components.spec).run
        runner = run(
            components, self._accelerator, self._tuning, self._note, adapters=self._adapters, find=self.auxiliary
        )
        if self._team is None:
            return runner
        if not isinstance(runner, Splittable):
            family = components.spec.family
            raise LoadError(f"model {group}: steps of the family {family} cannot be shared out; leave --parallel out.")
        runner.split.join(self._team, group)
        return runner

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

    def _modules(self, names: Iterable[str] | None = None) -> Iterator[nn.Module]:
        for name in self._held if names is None else names:
            held, copy = self._held[name], self._float8.get(name)
            yield from (held if isinstance(held, Auxiliary) else held.components).modules.values()
            yield from () if copy is None else copy.components.modules.values()

    def load_all(self) -> None:
        """Load what was given, as far as it is not in memory, float8 copies included. Raises: LoadError."""
        self._tell(Wake())
        for name in self.specs:
            self.runner(name)
        for name in self.helpers:
            self.auxiliary(name)
        self.hold_float8()
        if self._team is not None:
            self._team.settle()

    def unload(self) -> None:
        """Free the device; what is asked for next is loaded again. Nothing may be under way."""
        self._finish_loading()
        self._tell(Sleep())
        self._held.clear()
        self._float8.clear()
        self._is_over = False
        for name in (*self.specs, *self._on_demand):
            self._adapters.forget(name)
        self._parts.keep_only(set())
        self._accelerator.release_cached_memory()

    def _make_room(self, spec: ModelSpec, spares_busy: bool) -> bool:
        """Before a checkpoint is loaded, so that the old one and the new one are not held at once.

        Args: spares_busy: only idle ones go. Returns: False, and nothing goes, if room is there without busy ones only.
        """
        if self._memory_bytes is None or not self._held or not spec.draws:
            return True
        looked_at = replace(spec, fetches=False)  # between two steps nothing is downloaded
        added, shared = outlook(looked_at, self._dtype or self._accelerator.default_dtype, self._parts)
        room, staying, going = self._memory_bytes - added - self.adapter_bytes, list(self._held), list[str]()
        idle, busy = self._by_use()
        for name in idle if spares_busy else [*idle, *busy]:
            if weight_bytes(*self._modules(staying)) <= room:
                break
            staying.remove(name)
            going.append(name)
        if spares_busy and busy and weight_bytes(*self._modules(staying)) > room:
            return False
        for name in going:
            self._unload(name, shared)
        return True

    def _by_use(self) -> tuple[list[str], list[str]]:
        """Names of what is held: idle ones and busy ones, least recently used first."""
        busy = {spec.name for name in self.busy() if (spec := self._spec(name)) is not None}
        return [name for name in self._held if name not in busy], [name for name in self._held if name in busy]

    def _spare(self) -> list[str]:
        """What is idle, least recently used first, but for the latest."""
        return [name for name in self._by_use()[0] if name != next(reversed(self._held))]

    def _unload_over_budget(self) -> None:
        """Let idle ones go until the others fit; the latest stays, and busy ones until they are idle."""
        spare = self._spare()
        while spare and self._exceeds():
            self._unload(spare.pop(0))
        self._is_over = not spare and len(self._held) > 1 and self._exceeds()

    def _exceeds(self) -> bool:
        return self._memory_bytes is not None and self.weights() > self._memory_bytes

    def _unload(self, name: str, keep: AbstractSet[int] = frozenset()) -> None:
        """Args: keep: `id` of parts that are wanted again at once."""
        del self._held[name]
        self._float8.pop(name, None)
        self._adapters.forget(name)
        self._parts.keep_only({id(module) for module in self._modules()} | keep)
        self._accelerator.release_cached_memory()


def _cannot_be_loaded(name: str) -> str:
    return f"the model {name} cannot be loaded here"


def _own_estimators(specs: Sequence[ModelSpec]) -> list[ModelSpec]:
    """Depth estimators that checkpoints bring in their own folders."""
    found = ((spec, own_estimator(spec)) for spec in (*specs, *siblings(specs)))
    return [
        ModelSpec(f"{spec.name}/depth_estimator", str(folder), variant="depth-estimator", licence=spec.licence)
        for spec, folder in found
        if folder is not None
    ]
