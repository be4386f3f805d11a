"""One node: the store, the files, the workers and what ties them together. Never imports torch."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from models.arguments import resolve_all
from models.fingerprint import fingerprint
from models.offers import offered, spelled_out
from models.registry import EMBEDDED_LORAS, ModelSpec
from server.api import wire
from server.api.preparation import Preparation
from server.api.prices import Prices
from server.api.schemas.sizes import PRESETS
from server.api.served import Served
from server.files import content_credentials
from server.files.adapter_store import AdapterStore
from server.files.adapters import Adapters
from server.files.addresses import SignedAddresses
from server.files.choice import open_objects
from server.files.content_credentials import Credentials
from server.files.disk import Disk
from server.files.inputs import Inputs
from server.files.objects import Objects
from server.files.outputs import Outputs
from server.files.private import private_folder
from server.gateway.key_file import KeyFile
from server.gateway.keys import KeyRing
from server.http.expander import Expander
from server.http.outgoing import Network, parse_networks, refuse_at_sight
from server.jobs.completion import Completion
from server.jobs.dispatcher import Dispatcher
from server.jobs.forecast import Forecast
from server.jobs.limits import Allowance, Limits
from server.jobs.live import LiveJobs
from server.jobs.membership import Membership, new_name
from server.jobs.preparation import Preparations
from server.jobs.result_cache import ResultCache
from server.jobs.scaling import Scaler
from server.jobs.service import JobService
from server.jobs.store.base import Store
from server.jobs.store.chosen import open_store
from server.jobs.store.clock import SteadyClock
from server.jobs.store.errors import StoreError
from server.jobs.store.job import JobStatus
from server.jobs.store.nodes import served_by
from server.jobs.upkeep import Upkeep
from server.settings import VERSION, Settings
from server.workers import threads
from server.workers.cluster.transport import ClusterWorkers
from server.workers.devices import count_gpus, devices, groups
from server.workers.process import FAKE_COMMAND, WORKER_COMMAND, WorkerOptions, Workers, WorkerState

logger = logging.getLogger("fluxserve.node")

DRAIN_S = 5.0
ANSWER_S = 9.0
"""After a signal, how long requests on open connections may still run; connections are cut a second later."""
STREAMS_S = 3.5
"""After a signal, how long event streams go on; they look once a second."""
TAKE_UP_S = 1.0
FILE_MARGIN_S = 3600.0
"""Files outlive the row that names them by this much, so that no result ever names a missing file."""
ADAPTERS = "adapters"
"""Folder of the LoRAs of requests, below the data folder."""
REQUEST_THREADS = 32
"""Submits that may wait for the disk at once; they share commits."""
BUCKET_THREADS = 16
"""Files that may be on their way to or from a bucket at once, besides those that clients read."""


@dataclass
class Node:
    """What the routes use. Made by `from_settings`; lives between `start` and `stop` on one event loop."""

    settings: Settings
    served: Served
    store: Store
    live: LiveJobs
    objects: Objects
    inputs: Inputs
    adapters: Adapters
    outputs: Outputs
    completion: Completion
    dispatcher: Dispatcher
    workers: Workers
    disk: Disk
    jobs: JobService
    membership: Membership
    keys: KeyRing
    prices: Prices
    upkeep: Upkeep
    request_threads: ThreadPoolExecutor
    expander: Expander | None = None
    scaler: Scaler | None = None
    _is_announced: bool = False
    _is_stopping: bool = False
    _unserved: dict[str, int] = field(default_factory=dict)
    _taking_up: asyncio.Task[None] | None = None
    _scaling: asyncio.Task[None] | None = None

    @classmethod
    def from_settings(cls, settings: Settings, worker_command: Sequence[str] | None = None) -> Node:
        """Open the data directory and wire everything; starts nothing.

        Args: worker_command: another program in the place of our workers.
        Raises: StoreError, TooFewThreadsError, CredentialsError, DamagedSecretError, ObjectsError, PricesError,
            UnknownModelError or ValueError with one sentence for the operator.
        """
        specs = resolve_all(settings.model_arguments, settings.model_folders)
        on_demand = spelled_out(settings.models_on_demand, specs)
        offers = offered(settings.model_arguments, on_demand, settings.model_folders, settings.fetch_on_demand)
        served = Served(specs, offers)
        command = worker_command or (FAKE_COMMAND if specs[0].is_fake else WORKER_COMMAND)
        request_threads = threads.started(REQUEST_THREADS, "request")
        prices = Prices.read(settings.prices)
        private_folder(settings.data_dir)
        clock = SteadyClock()
        store = open_store(settings.store, settings.data_dir, clock)
        live = LiveJobs()
        objects = _objects(settings, clock)
        keys = key_ring(settings)
        allowance = allowance_of(keys, objects, prices)
        outputs = Outputs(objects, settings.retention_s + FILE_MARGIN_S, credentials=_credentials(settings))
        allowed = parse_networks(settings.allow_private_cidrs)
        inputs = Inputs(objects, outputs.pool, allowed)
        adapters = _adapters(settings, specs, objects, allowed)
        expander = _expander(settings)
        preparation = Preparation(served, inputs, adapters, live, expander, store.now)
        completion = Completion(
            store, live, outputs, wire.result_body, preparation.fault, embed_parameters=settings.embed_parameters
        )
        forecast = Forecast()
        dispatcher = Dispatcher(store, live, completion, Preparations(preparation), allowance, forecast)
        name = new_name()
        workers = _workers(settings, name, _worker_options(settings, command, on_demand), dispatcher)
        disk = Disk(settings.data_dir)
        jobs = JobService(
            store,
            live,
            settings.max_queue,
            dispatcher.wake,
            dispatcher.cancel,
            disk.note_refused_write if settings.store is None else lambda: None,
            dispatcher.abandon,
            # A bucket that is away is waited for: what is submitted meanwhile is only queued.
            storage_problem=lambda: disk.problem or (objects.problem if settings.objects is None else None),
            allowance=allowance,
            check_webhook=partial(refuse_at_sight, allowed=allowed),
            sign=objects.signed,
            cache=_result_cache(settings, served, store, outputs),
            forecast=forecast if settings.reject_late else None,
            max_input_bytes=settings.max_queue_mb * 10**6,
        )
        store.listen(jobs.note_elsewhere)
        live.on_begin(jobs.note_begun)
        models = frozenset(spec.name for spec in served.all)
        files = settings.objects or "a folder"
        membership = Membership(store, name, workers, dispatcher, live, jobs.callers, models, files)
        return cls(
            settings,
            served,
            store,
            live,
            objects,
            inputs,
            adapters,
            outputs,
            completion,
            dispatcher,
            workers,
            disk,
            jobs,
            membership,
            keys=keys,
            prices=prices,
            upkeep=Upkeep(
                store,
                objects,
                outputs,
                live,
                disk,
                settings.retention_s,
                dispatcher.first_ready,
                None if settings.keep_gb is None else int(settings.keep_gb * 1e9),
            ),
            request_threads=request_threads,
            expander=expander,
            scaler=_scaler(settings, workers, dispatcher, store, membership),
        )

    async def start(self) -> None:
        """Take up what an earlier life left, start the workers and begin to claim."""
        asyncio.get_running_loop().set_default_executor(self.request_threads)
        await self.upkeep.probe()
        if not await self._take_up():
            self._taking_up = asyncio.create_task(self._take_up_later(), name="take-up")
        self.workers.start()
        if self.scaler is not None:
            self._scaling = asyncio.create_task(self.scaler.run(), name="scale")
        self.upkeep.start()
        self.membership.start(self._state)

    async def _take_up(self) -> bool:
        """Take up what an earlier life left, and begin to claim; False if the store cannot write that now."""
        try:
            ended = await asyncio.to_thread(self.store.end_ephemeral)
            recovered = await asyncio.to_thread(self.store.recover)
            served = self.membership.models | served_by(await asyncio.to_thread(self.store.nodes))
            waiting = await asyncio.to_thread(self.store.waiting_for_others, served)
        except StoreError as exc:
            logger.error("what an earlier life left cannot be taken up yet: %s", exc)
            return False
        if ended or recovered:
            logger.info("after a restart: %d requests run again, %d runs ended", len(recovered), ended)
        self._tell_who_waits_in_vain(waiting)
        self.dispatcher.start(self.workers)
        return True

    def _tell_who_waits_in_vain(self, waiting: Mapping[str, str]) -> None:
        """Requests whose model no node serves now: they are kept, and say what they wait for."""
        self._unserved = dict(Counter(waiting.values()))
        for model, number in self._unserved.items():
            logger.warning("%d requests wait for %s, which is not served now; serve it with --model", number, model)
        for job_id, model in waiting.items():
            self.live.log(job_id, f"waits for the model {model}, which is not served now", "WARN")

    async def _take_up_later(self) -> None:
        """Until the disk takes writes, finished results are served and nothing is claimed."""
        while not await self._take_up():  # noqa: ASYNC110 - the disk tells nobody
            await asyncio.sleep(TAKE_UP_S)

    def announce_stop(self, is_forced: bool = False) -> None:
        """A signal asks for the end; `stop` follows when open connections have their answers. On the event loop."""
        self._is_announced = True
        self._stop_scaling()
        self.workers.start_no_other()
        if is_forced:
            self.dispatcher.hasten()
        loop = asyncio.get_running_loop()
        loop.call_later(0.0 if is_forced else STREAMS_S, self.jobs.streams_end.set)
        loop.call_later(0.0 if is_forced else ANSWER_S, self.jobs.stopping.set)

    async def stop(self, drain_s: float = DRAIN_S) -> None:
        """Let what runs finish for at most so long, hand the rest back, and close everything. Idempotent."""
        if self._is_stopping:
            return
        self._is_stopping = True
        self._stop_scaling()
        if self._taking_up is not None:
            self._taking_up.cancel()
        await self.dispatcher.drain(drain_s)
        await self.upkeep.stop()
        await self.workers.stop()
        await self.dispatcher.close()
        await self.membership.leave()
        await self.inputs.aclose()
        await self.adapters.aclose()
        if self.expander is not None:
            await self.expander.aclose()
        self.outputs.close()
        self.objects.close()
        self.store.close()  # first: whoever waits for it has an answer then
        self.completion.close()

    def _stop_scaling(self) -> None:
        if self._scaling is not None:
            self._scaling.cancel()

    @property
    def ready(self) -> bool:
        """Whether a worker is loaded, the queue accepts, and what it takes and draws can be stored."""
        is_taking = self.dispatcher.is_accepting and not self._is_announced and not self.membership.is_resting
        return is_taking and bool(self.workers.ready) and not self.problems

    @property
    def problems(self) -> list[str]:
        """What keeps requests or pictures from being stored, a sentence each."""
        looked_at = (self.disk.problem, self.store.problem, self.outputs.problem)
        return [problem for problem in looked_at if problem is not None]

    def health(self) -> dict[str, Any]:
        """What /health says."""
        models = {model["name"]: model for worker in self.workers if worker.ready for model in worker.ready.models}
        counts = self.store.counts()
        return {
            "state": self._state(),
            "ready": self.ready,
            "problems": self.problems,
            "models": list(models.values()),
            "has_safety_checker": bool(models) and all(model["has_safety_checker"] for model in models.values()),
            "workers": [worker.describe() for worker in self.workers],
            "unserved": {
                model: self._unserved[model] for model in self._unserved.keys() - served_by(self.membership.seen)
            },
            "node": self.membership.name,
            "nodes": [node.brief for node in self.membership.seen],
            "queue": {"queued": counts[JobStatus.QUEUED], "running": counts[JobStatus.RUNNING]},
        }

    def _state(self) -> str:
        if self._is_stopping or self._is_announced:
            return "stopping"
        if (rest := self.membership.rest) is not None:
            return rest
        if self.problems:
            return "cannot_encode" if self.problems == [self.outputs.encoder_problem] else "unwritable"
        if self.ready:
            return "ready"
        states = {worker.state for worker in self.workers}
        return next((str(state) for state in (WorkerState.LOADING, WorkerState.ASLEEP) if state in states), "starting")


def _objects(settings: Settings, clock: Callable[[], float]) -> Objects:
    folder, addresses = settings.data_dir / "files", _signed_addresses(settings)
    own = None if settings.objects is None else threads.started(BUCKET_THREADS, "objects")
    return open_objects(folder, settings.objects, settings.s3_endpoint, settings.s3_redirect, clock, addresses, own)


def _signed_addresses(settings: Settings) -> SignedAddresses | None:
    """By the machine's own clock, which those to whom the addresses are given have, too."""
    lifetime_s = settings.signed_urls_s
    return None if lifetime_s is None else SignedAddresses.of(settings.data_dir, lifetime_s)


def _adapters(settings: Settings, specs: Sequence[ModelSpec], objects: Objects, allowed: Sequence[Network]) -> Adapters:
    store = AdapterStore(settings.data_dir / ADAPTERS, int(settings.adapter_store_gb * 1e9))
    embedded = EMBEDDED_LORAS if EMBEDDED_LORAS.is_dir() and any(spec.is_embedded for spec in specs) else None
    return Adapters(
        store,
        objects,
        settings.adapter_dir or embedded,
        settings.adapter_hub,
        settings.max_adapter_mb << 20,
        allowed,
    )


def _result_cache(settings: Settings, served: Served, store: Store, outputs: Outputs) -> ResultCache | None:
    if not settings.result_cache:
        return None
    how = (settings.device, settings.dtype, settings.quantization, settings.acceleration, settings.tuning)
    return ResultCache(store, outputs, fingerprint(served.all, VERSION, how, settings.embed_parameters))


def _expander(settings: Settings) -> Expander | None:
    if settings.expander is None:
        return None
    return Expander(
        settings.expander, settings.expander_model, settings.expander_key, timeout_s=settings.expander_timeout_s
    )


def _credentials(settings: Settings) -> Credentials | None:
    if settings.c2pa_cert is None or settings.c2pa_key is None:
        return None
    return content_credentials.read(settings.c2pa_cert, settings.c2pa_key)


def allowance_of(keys: KeyRing, objects: Objects, prices: Prices) -> Allowance:
    """What the keys may take: their limits, and their budgets at these prices."""
    return Allowance(
        keys.limits,
        objects.stored_bytes,
        budgets=lambda key_id: [prices.budget(rule) for rule in keys.budgets(key_id)],
    )


def key_ring(settings: Settings) -> KeyRing:
    """The keys of the settings and of the data folder. Raises: KeyFileError."""
    storage_bytes = None if settings.key_storage_mb is None else settings.key_storage_mb * 10**6
    limits = Limits(settings.key_running, settings.key_waiting, settings.key_per_minute, storage_bytes)
    return KeyRing(settings.api_keys, KeyFile(settings.key_file), limits)


def _workers(settings: Settings, name: str, options: WorkerOptions, dispatcher: Dispatcher) -> Workers:
    if settings.cluster is None:
        names = groups(devices(settings.device, count_gpus()), settings.parallel)
        return Workers(name, names, options, dispatcher)
    # Its machines have folders of their own for what they compile.
    options = replace(options, cache_dir=None)
    transport = ClusterWorkers(
        settings.cluster, options, settings.device, settings.worker_cpus, settings.worker_host, settings.worker_port
    )
    return Workers(name, (), options, dispatcher, transport)


def _scaler(
    settings: Settings, workers: Workers, dispatcher: Dispatcher, store: Store, membership: Membership
) -> Scaler | None:
    """None where workers are this machine's devices: their number never changes."""
    if settings.cluster is None:
        return None
    waiting, is_resting = lambda: store.counts()[JobStatus.QUEUED], lambda: membership.is_resting
    return Scaler(workers, dispatcher, waiting, *settings.worker_range, is_resting)


def _worker_options(settings: Settings, command: Sequence[str], on_demand: tuple[str, ...]) -> WorkerOptions:
    return WorkerOptions(
        models=settings.model_arguments,
        model_dirs=settings.model_dirs,
        on_demand=on_demand,
        fetch_on_demand=settings.fetch_on_demand,
        unload_after_s=settings.unload_after,
        no_mmap=settings.no_mmap,
        dtype=settings.dtype,
        quantization=settings.quantization,
        acceleration=settings.acceleration,
        offload=settings.offload,
        tuning=settings.tuning,
        memory_gb=settings.memory_gb,
        hang_s=settings.hang_s,
        warmup=settings.warmup,
        warmup_sizes=tuple(PRESETS.values()),
        adapters=settings.data_dir / ADAPTERS,
        cache_dir=settings.data_dir / "cache",
        command=tuple(command),
    )
