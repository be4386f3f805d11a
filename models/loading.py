"""From a checkpoint's name to its modules on a device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import Flux2Transformer2DModel, Flux3Transformer2DModel
from safetensors import SafetensorError
from torch import nn

from models import host_memory
from models.accelerator import Accelerator
from models.adapters.merging import merge
from models.building import vae_dtype
from models.counts import modulation_share
from models.errors import LoadError
from models.files.mounts import is_remote
from models.files.weights import identity
from models.group_norm import checked_kernel, fuse_norms
from models.memory import MODULATION_WAITS, Offload, random_bytes
from models.packed import is_packed
from models.part import Part, check_numbers
from models.placement import TEXT_PARTS, place
from models.quantization import quantize
from models.recipes import Opened, Recipe, recipe_of
from models.registry import ModelSpec
from models.streaming import stream_blocks
from models.tuning import PLAIN, Tuning

Progress = Callable[[str, float], None]
"""Called with a stage in words and the fraction done, in [0, 1]."""


def silence_libraries() -> None:
    """Keep the libraries' notices and bars off the terminal: we report loading ourselves, and faults as LoadError."""
    for library in (diffusers, transformers):
        library.logging.set_verbosity_error()
        library.logging.disable_progress_bar()


def load(
    spec: ModelSpec,
    accelerator: Accelerator,
    dtype: torch.dtype | None = None,
    quantization: str = "none",
    progress: Progress = lambda stage, fraction: None,
    cache: PartCache | None = None,
    offload: Offload = "none",
    tuning: Tuning = PLAIN,
) -> Any:
    """Load one checkpoint onto the device: the components of its family (`models.recipes`).

    Args: dtype: None takes the device's own. cache: parts that other checkpoints brought along.
        offload: what waits on the host (see `models.placement`).
        tuning: what of it concerns the weights is done here.
    Raises: LoadError with one sentence that says what to do.
    """
    started, recipe = time.monotonic(), recipe_of(spec)
    tuning = tuning.resolved(accelerator.kind)
    if offload == "text+blocks" and tuning.kernels == "compiled":
        raise LoadError("--offload text+blocks cannot be compiled: use another --tuning kernels.")
    if offload == "text+blocks" and not recipe.streams:
        raise LoadError(f"model {spec.name} has no blocks that could wait on the host: use --offload text.")
    dtype = dtype or accelerator.default_dtype
    try:
        components = _load_parts(recipe, spec, accelerator.device, dtype, quantization, progress, cache, offload)
    except Exception as exc:
        if accelerator.is_out_of_memory(exc):
            raise LoadError(
                f"model {spec.name} does not fit into the memory of {accelerator.device}; "
                "`fluxserve doctor` says which of --quantization and --offload make it fit."
            ) from exc
        raise
    tune(components, tuning, accelerator)
    progress("quantization", 0.99)
    quantize(components.core, quantization, accelerator)
    if offload == "text+blocks":
        stream_blocks(components.core, accelerator)
    components.core.to(accelerator.device)
    accelerator.release_cached_memory()  # of joining projections and shrinking weights: 9.5 GB of 43 on a GPU
    accelerator.mark().wait()  # prompts are encoded on another stream, which does not wait for this one
    progress("loaded", 1.0)
    return replace(components, load_s=time.monotonic() - started)


def tune(components: Any, tuning: Tuning, accelerator: Accelerator) -> None:
    """Do in place what of the switches concerns the weights. Args: tuning: resolved for this kind of device."""
    if not is_packed(components.core):  # their rows may be stored in different forms
        fuse_projections = recipe_of(components.spec).fuse
        fuse_projections(components.core, bool(tuning.fuse_qkv), bool(tuning.fuse_mlp))
    if tuning.vae_channels_last:
        components.vae.to(memory_format=torch.channels_last)
    if tuning.fuse_vae_norms and (kernel := checked_kernel(accelerator.device, components.vae.dtype)):
        fuse_norms(components.vae, kernel)
    if tuning.compile_vae:
        components.vae.decoder.compile(dynamic=True)


def _load_parts(
    recipe: Recipe,
    spec: ModelSpec,
    device: torch.device,
    dtype: torch.dtype,
    quantization: str,
    progress: Progress,
    cache: PartCache | None,
    offload: Offload,
) -> Any:
    if spec.source.startswith("random:"):
        _check_host(spec.name, random_bytes(spec, dtype.itemsize) if device.type == "cpu" else 0)
        components = recipe.random(spec, device, dtype, progress, offload)
        if spec.adapter is not None:
            merge(Path(spec.adapter), spec.family, components.core, device, dtype)
        return components
    # What is to be shrunk, or to wait, is made so on the host: the device may have no room for it before.
    is_changed = quantization != "none" or offload == "text+blocks"
    homes = {recipe.core: torch.device("cpu")} if is_changed else {}
    checkpoint = recipe.open(spec)
    parts = _Parts(checkpoint, device, dtype, progress, cache or PartCache(), offload, homes)
    _check_host(spec.name, parts.host_bytes())
    try:
        components = recipe.assemble(spec, checkpoint, parts.load)
    except (OSError, SafetensorError) as exc:  # it was sound a moment ago
        reason = getattr(exc, "strerror", None) or str(exc).splitlines()[0][:200]
        raise LoadError(f"model {spec.name}: {checkpoint.name} cannot be read ({reason}).") from exc
    return replace(components, shared=frozenset(parts.shared))


def _check_host(name: str, needed: int) -> None:
    """Arithmetic before the system ends the process. Raises: LoadError."""
    free = host_memory.available()
    if needed > free:
        raise LoadError(
            f"model {name} needs {needed / 1e9:.1f} GB of this machine's memory, {free / 1e9:.1f} GB are free; "
            "use a smaller --dtype, another --device, or free some."
        )


class PartCache:
    """Loaded parts by the identity of their files, so that checkpoints share text encoders and VAE.

    Equal files of two repositories in a Hugging Face cache are known by the hashes that they are named by.

    Args: maps: whether files may be mapped; what lies on another machine never is.
    """

    def __init__(self, maps: bool = True) -> None:
        self._maps = maps
        self._parts: dict[tuple[Any, ...], nn.Module] = {}

    def get(self, part: Part, dtype: torch.dtype, build: Callable[[], nn.Module]) -> tuple[nn.Module, bool]:
        """The module of this part and whether it was here already."""
        key = _key(part, dtype)
        if (held := self._parts.get(key)) is not None:
            return held, True
        module = self._parts[key] = build()
        return module, False

    def maps(self, part: Part) -> bool:
        """Whether this part's files are mapped, where they may be, or read once and in order."""
        return self._maps and not any(map(is_remote, part.files))

    def held(self, part: Part, dtype: torch.dtype) -> nn.Module | None:
        return self._parts.get(_key(part, dtype))

    def holds(self, part: Part, dtype: torch.dtype) -> bool:
        return self.held(part, dtype) is not None

    def keep_only(self, used: set[int]) -> None:
        """Forget parts whose `id` no checkpoint uses any more."""
        self._parts = {key: module for key, module in self._parts.items() if id(module) in used}


def outlook(spec: ModelSpec, dtype: torch.dtype, cache: PartCache) -> tuple[int, set[int]]:
    """What loading would add to memory, in bytes, and the `id` of every part in `cache` that it would use.

    Nothing of a checkpoint that cannot be looked at: loading it says why.
    """
    if spec.source.startswith("random:"):
        return random_bytes(spec, dtype.itemsize), set()
    try:
        parts = recipe_of(spec).open(spec).parts
    except LoadError:
        return 0, set()
    added, used = 0, set()
    for name, part in parts.items():
        wanted = vae_dtype(dtype) if name == "vae" else dtype
        held = cache.held(part, wanted)
        if held is None:
            added += part.loaded_bytes(wanted)
        else:
            used.add(id(held))
    return added, used


def _key(part: Part, dtype: torch.dtype) -> tuple[Any, ...]:
    adapters = [part.adapter[0]] if part.adapter else []
    return (dtype, part.prefix, str(part.config), len(adapters), *map(identity, (*part.files, *adapters)))


class _Parts:
    """Loads the parts of one checkpoint, each to where it belongs, and reports by the bytes that are there.

    Args: homes: where parts go that do not go to `device`.
    """

    def __init__(
        self,
        checkpoint: Opened,
        device: torch.device,
        dtype: torch.dtype,
        progress: Progress,
        cache: PartCache,
        offload: Offload,
        homes: Mapping[str, torch.device],
    ) -> None:
        self.device = device
        self.dtype = dtype
        self.shared: set[str] = set()
        self._parts = checkpoint.parts
        self._progress = progress
        self._cache = cache
        self._offload = offload
        self._homes = homes
        self._sizes = {name: part.stored_bytes for name, part in self._parts.items()}
        self._done = 0

    def host_bytes(self) -> int:
        """What the parts will take of the host's memory: those that stay, and the largest that passes through it."""
        staying, passing = 0, [0]
        for name, part in self._parts.items():
            if self._cache.holds(part, self._dtype(name)):
                continue
            size = part.loaded_bytes(self._dtype(name))
            if self._stays_on_host(name):
                staying += size
                continue
            has_waiting = name == "transformer" and part.kind is not Flux3Transformer2DModel
            if has_waiting and self._offload in MODULATION_WAITS:
                staying += int(size * modulation_share(part.config, part.kind is Flux2Transformer2DModel))
            if not self._cache.maps(part):
                passing.append(size)
        return staying + max(passing)

    def _stays_on_host(self, name: str) -> bool:
        waits = self._offload != "none" and name in TEXT_PARTS
        return waits or self._homes.get(name, self.device).type == "cpu"

    def _dtype(self, name: str) -> torch.dtype:
        return vae_dtype(self.dtype) if name == "vae" else self.dtype

    def load(self, name: str) -> Any:
        """The module of one part. Raises: LoadError."""
        part, size, dtype = self._parts[name], self._sizes[name], self._dtype(name)
        total, reported, read = sum(self._sizes.values()), -1.0, 0

        def moved(fraction: float) -> None:
            nonlocal reported
            overall = 0.98 * (self._done + fraction * size) / total
            if overall - reported >= 0.01:
                reported = overall
                self._progress(name.replace("_", " "), overall)

        def read_bytes(count: int) -> None:
            nonlocal read
            read += count
            moved(min(1.0, read / size))

        def build() -> nn.Module:
            # A mapped file that is overwritten ends the process: what stays on the host is read.
            module = part.load(dtype, self._stays_on_host(name) or not self._cache.maps(part), read_bytes)
            if name == "vae":
                check_numbers(part.label, module.state_dict())
            placed = place(name, module, self._homes.get(name, self.device), self._offload, moved, self.device)
            if part.adapter is not None:
                merge(*part.adapter, placed, self.device, dtype)
            return placed

        moved(0.0)
        module, was_here = self._cache.get(part, dtype, build)
        self._done += size
        self.shared |= {name} if was_here else set()
        return module
