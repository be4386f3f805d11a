"""What differs between kinds of device. The only file that names `torch.cuda`."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import psutil
import torch
from torch import Tensor

from models import host_memory

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Marker(Protocol):
    """A point in a device's work: has it been reached?"""

    def is_done(self) -> bool: ...

    def wait(self) -> None: ...

    def elapsed_ms(self, start: Marker) -> float | None:
        """Device milliseconds from `start` to here; None where only the caller's clock can tell."""


class Launched(Protocol[T_co]):
    """Work that runs beside the steps."""

    def is_done(self) -> bool: ...

    def wait(self) -> None: ...

    def result(self) -> T_co:
        """What the work returned, waiting for it if need be. Raises: what the work raised."""

    def notify(self, callback: Callable[[], object]) -> None:
        """Call back from any thread once done, if the device can (`Accelerator.notifies`)."""


class Accelerator(Protocol):
    """One device as the engine needs it: where, in which precision, how much memory, which streams."""

    device: torch.device
    kind: str
    name: str
    default_dtype: torch.dtype
    capability: tuple[int, int]
    """CUDA's compute capability; (0, 0) elsewhere."""
    notifies: bool
    """True where the end of launched work calls back; elsewhere it has to be polled."""
    has_float8: bool
    """True where products of float8 rows are faster than those of the default dtype."""
    modulates_row_by_row: bool
    """True where single-row products are cheap and make a lone request equal the stock pipeline bit for bit."""

    def memory(self) -> dict[str, int]:
        """Bytes by name, for metrics: at least `used`, `total` and `peak`, the most that this process has held."""

    def launch(self, purpose: str, work: Callable[[], T], waits: bool = True) -> Launched[T]:
        """Run `work` beside the steps; with `waits`, after everything launched so far.

        What has the same purpose runs in order. Host copies made inside by `to_host` are complete once it is done.
        """

    def enter_thread(self) -> None:
        """First of a thread that loads or launches: what it does is on this device."""

    def follow(self, launched: Launched[object]) -> None:
        """Let what is launched from now on begin after this work; the caller does not wait where a device can.

        Raises: what the work raised.
        """

    def mark(self) -> Marker:
        """A marker after everything launched on the current stream."""

    def adopt(self, *tensors: Tensor) -> None:
        """Say that the current stream now uses tensors made on another."""

    def to_host(self, tensor: Tensor) -> Tensor:
        """A host copy, complete once what was launched up to here is done."""

    def to_device(self, tensor: Tensor) -> Tensor:
        """A host tensor on the device, for the current stream; the caller does not wait for what was launched there."""

    def record(self, work: Callable[[], T]) -> tuple[T, Callable[[], None]] | None:
        """Keep what `work` launches on the current stream, without running it, to be launched at once by a call.

        Returns: what `work` returned, filled by every such call; None where a device keeps no launches.
        Raises: whatever cannot be kept.
        """

    def allow_split_k(self, allowed: bool) -> None:
        """Whether matrix products may be split along their inner side, by their number of rows."""

    def release_cached_memory(self) -> None: ...

    def is_out_of_memory(self, error: BaseException) -> bool: ...

    def is_fatal(self, error: BaseException) -> bool:
        """True if the device is beyond use in this process (a sticky CUDA error)."""


class _Done:
    """The marker of a device that has finished when the call returns."""

    def is_done(self) -> bool:
        return True

    def wait(self) -> None:
        return None

    def elapsed_ms(self, start: Marker) -> float | None:
        return None


class DeviceLostError(RuntimeError):
    """A device that steps are computed on is beyond use, and with it this process."""


class Broken:
    """Work that failed while it was launched: whoever asks for the result learns it, nobody else."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def is_done(self) -> bool:
        return True

    def wait(self) -> None:
        return None

    def result(self) -> Any:
        raise self._error

    def notify(self, callback: Callable[[], object]) -> None:
        callback()


class _Background(Generic[T]):
    """Work on another thread."""

    def __init__(self, future: Future[T]) -> None:
        self._future = future

    def is_done(self) -> bool:
        return self._future.done()

    def wait(self) -> None:
        wait_for([self._future])

    def result(self) -> T:
        return self._future.result()

    def notify(self, callback: Callable[[], object]) -> None:
        self._future.add_done_callback(lambda future: callback())


_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def _keep_freed_memory() -> None:
    """Tell glibc to reuse large blocks instead of giving them back to the kernel.

    Otherwise every activation over 32 MB is fresh pages, and zeroing them is 40 % of decoding 1024 x 768 (1071 to
    646 ms of processor time, flux-shapes, one thread). One arena for all threads, because the others give whole heaps
    back (1024 x 1024 on the decoding thread: 1.40 to 0.85 s). Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


class CpuAccelerator:
    """The processor. Steps run on the caller's thread, everything else on one thread a purpose beside it."""

    kind = "cpu"
    has_float8 = False
    capability = (0, 0)
    notifies = True
    modulates_row_by_row = True

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.default_dtype = torch.float32
        _keep_freed_memory()
        self._threads = torch.get_num_threads()
        self.name = f"CPU, {self._threads} threads"
        self._process = psutil.Process(os.getpid())
        self._pools: dict[str, ThreadPoolExecutor] = {}

    def memory(self) -> dict[str, int]:
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        total = host_memory.total()
        return {"used": self._process.memory_info().rss, "total": total, "peak": kilobytes * 1024}

    def launch(self, purpose: str, work: Callable[[], T], waits: bool = True) -> Launched[T]:
        if purpose not in self._pools:
            self._pools[purpose] = ThreadPoolExecutor(1, purpose, torch.set_num_threads, (self._threads,))
        return _Background(self._pools[purpose].submit(work))

    def enter_thread(self) -> None:
        return None

    def follow(self, launched: Launched[object]) -> None:
        launched.result()

    def mark(self) -> Marker:
        return _Done()

    def adopt(self, *tensors: Tensor) -> None:
        return None

    def to_host(self, tensor: Tensor) -> Tensor:
        return tensor

    def to_device(self, tensor: Tensor) -> Tensor:
        return tensor

    def record(self, work: Callable[[], T]) -> tuple[T, Callable[[], None]] | None:
        return None

    def allow_split_k(self, allowed: bool) -> None:
        return None

    def release_cached_memory(self) -> None:
        return None

    def is_out_of_memory(self, error: BaseException) -> bool:
        # torch's CPU allocator raises a plain RuntimeError.
        return isinstance(error, MemoryError) or (
            isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
        )

    def is_fatal(self, error: BaseException) -> bool:
        return isinstance(error, DeviceLostError)


@dataclass(frozen=True)
class _OnStream(Generic[T]):
    """Work on a CUDA stream, complete when its marker is reached."""

    value: T
    marker: _CudaMarker

    def is_done(self) -> bool:
        return self.marker.is_done()

    def wait(self) -> None:
        self.marker.wait()

    def result(self) -> T:
        self.marker.wait()
        return self.value

    def notify(self, callback: Callable[[], object]) -> None:
        return None


class _CudaMarker:
    """A CUDA event."""

    def __init__(self) -> None:
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record()

    def is_done(self) -> bool:
        return bool(self.event.query())

    def wait(self) -> None:
        self.event.synchronize()

    def elapsed_ms(self, start: Marker) -> float | None:
        return start.event.elapsed_time(self.event) if isinstance(start, _CudaMarker) else None


class CudaAccelerator:
    """One CUDA device. Steps run on a high-priority stream, everything else beside them."""

    kind = "cuda"
    notifies = False
    modulates_row_by_row = False

    def __init__(self, index: int) -> None:
        self.device = torch.device("cuda", index)
        torch.cuda.set_device(self.device)
        self.default_dtype = torch.bfloat16
        self.name = torch.cuda.get_device_name(index)
        self.capability = torch.cuda.get_device_capability(index)
        self.has_float8 = self.capability >= (8, 9)
        self._streams: dict[str, torch.cuda.Stream] = {}
        self._recordings = torch.cuda.graph_pool_handle()
        torch.cuda.set_stream(torch.cuda.Stream(self.device, priority=-1))

    def memory(self) -> dict[str, int]:
        free, total = torch.cuda.mem_get_info(self.device)
        return {
            "used": total - free,
            "total": total,
            "allocated": torch.cuda.memory_allocated(self.device),
            "reserved": torch.cuda.memory_reserved(self.device),
            "peak": torch.cuda.max_memory_reserved(self.device),
        }

    def launch(self, purpose: str, work: Callable[[], T], waits: bool = True) -> Launched[T]:
        if purpose not in self._streams:  # every new stream takes one of a pool of 32
            self._streams[purpose] = torch.cuda.Stream(self.device)
        side = self._streams[purpose]
        if waits:
            side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            return _OnStream(work(), _CudaMarker())

    def enter_thread(self) -> None:
        torch.cuda.set_device(self.device)

    def follow(self, launched: Launched[object]) -> None:
        assert isinstance(launched, _OnStream)
        torch.cuda.current_stream(self.device).wait_event(launched.marker.event)

    def mark(self) -> Marker:
        return _CudaMarker()

    def adopt(self, *tensors: Tensor) -> None:
        # Otherwise the allocator may hand the memory out again while this stream still reads it.
        for tensor in tensors:
            tensor.record_stream(torch.cuda.current_stream(self.device))

    def to_host(self, tensor: Tensor) -> Tensor:
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        return host

    def to_device(self, tensor: Tensor) -> Tensor:
        # From pageable memory the copy would wait for all that the stream has to do first.
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def record(self, work: Callable[[], T]) -> tuple[T, Callable[[], None]] | None:
        graph = torch.cuda.CUDAGraph()
        # Other threads go on using the device meanwhile. All recordings share memory: they never run at once.
        graph.capture_begin(pool=self._recordings, capture_error_mode="thread_local")
        try:
            result = work()
        finally:
            graph.capture_end()
        return result, graph.replay

    def allow_split_k(self, allowed: bool) -> None:
        # (sums in half precision, split-K), both allowed by default; the second alone cannot be forbidden, and only
        # cuBLASLt can be told so: plain cuBLAS, which products without bias go to by default, raises.
        torch.backends.cuda.preferred_blas_library("default" if allowed else "cublaslt")
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = (allowed, allowed)
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = (allowed, allowed)

    def release_cached_memory(self) -> None:
        torch.cuda.empty_cache()

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, torch.OutOfMemoryError | MemoryError)

    def is_fatal(self, error: BaseException) -> bool:
        if isinstance(error, DeviceLostError):
            return True
        # torch 2.9 introduced AcceleratorError; older code raises RuntimeError with the same text.
        return not self.is_out_of_memory(error) and isinstance(error, RuntimeError) and "CUDA error" in str(error)


class DeviceError(ValueError):
    """The device that was asked for is not here, or no such kind exists."""


def _open_cpu(index: int) -> Accelerator:
    return CpuAccelerator()


def _open_cuda(index: int) -> Accelerator:
    if index >= torch.cuda.device_count():
        raise DeviceError(f"cuda:{index} is not here: torch {torch.__version__} sees {torch.cuda.device_count()} GPUs")
    return CudaAccelerator(index)


KINDS: dict[str, Callable[[int], Accelerator]] = {"cpu": _open_cpu, "cuda": _open_cuda}


def host_copy(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy in host memory of its own from which `device` reads fast (pinned, where there is such a thing)."""
    if device.type == "cuda":
        return tensor.to("cpu").pin_memory()
    return tensor.to("cpu", copy=True)


def gpu_facts() -> list[dict[str, str | int]]:
    """Name, bytes of memory and compute capability of every GPU that torch sees."""
    every = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return [{"name": gpu.name, "memory": gpu.total_memory, "capability": f"{gpu.major}.{gpu.minor}"} for gpu in every]


def open_accelerator(name: str) -> Accelerator:
    """The device called `auto`, `cpu`, `cuda` or `cuda:1`.

    Raises: DeviceError if it is not here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in KINDS or not (index or "0").isdigit():
        raise DeviceError(f"unknown device {name!r}: give auto, cpu, cuda or cuda:<index>")
    return KINDS[kind](int(index or 0))


def pick_dtype(name: str, accelerator: Accelerator) -> torch.dtype:
    """The dtype called `auto`, `bfloat16`, `float16`, `float32` or `float64`. Raises: ValueError."""
    names = {
        "auto": accelerator.default_dtype,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
        "float32": torch.float32,
        "float64": torch.float64,
    }
    if name not in names:
        raise ValueError(f"unknown dtype {name!r}: give one of {', '.join(names)}")
    return names[name]
