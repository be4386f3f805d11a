"""The adapters in memory: read when a request first names them, the least recently used dropped beyond a size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import nn

from models.accelerator import Launched
from models.adapter_files import AdapterError
from models.registry import ModelSpec
from pipelines.adapters.adapter import FittedAdapter, Uses, fit
from pipelines.adapters.ahead import After, ReadAhead
from pipelines.engine.request import RequestError
from pipelines.protocol import lookups
from pipelines.protocol.conditions import Adapter

T = TypeVar("T")

ADAPTER_BYTES = 4 << 30
"""What the adapters of a worker's requests may take: some thirty of rank 16 over every linear of FLUX.1's blocks."""


class Model(Protocol):
    """What adapters are fitted to: a checkpoint's loaded parts."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def transformer(self) -> nn.Module: ...

    @property
    def text_encoder(self) -> nn.Module: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...


class AdapterCache:
    """Adapters by model and file. A request that holds one keeps it alive after it was dropped here.

    Args: folder: where the files are; None has none. max_bytes: held at once, and the most that one may have.
    """

    def __init__(self, folder: Path | None, max_bytes: int) -> None:
        self._files = ReadAhead(folder) if folder else None
        self._max_bytes = max_bytes
        self._held: OrderedDict[tuple[str, str], FittedAdapter] = OrderedDict()
        self.nbytes = 0

    def launch(self, components: Model, adapters: Sequence[Adapter], work: Callable[[], Launched[T]]) -> Launched[T]:
        """Launch work that will need these adapters: now, or once the files that are not in memory have been read."""
        if self._files is None:
            return work()
        missing = [a.file for a in adapters if (components.spec.name, a.file) not in self._held]
        return After([self._files.begin(file, components.spec.family) for file in missing], work) if missing else work()

    def get(self, components: Model, file: str) -> FittedAdapter:
        """The adapter of this file, fitted to this model. Raises: AdapterError with one sentence."""
        key = components.spec.name, file
        lookups.note("adapters", key in self._held)
        if key not in self._held:
            self._keep(key, self._read(components, file))
        self._held.move_to_end(key)
        return self._held[key]

    def uses(self, components: Model, adapters: Sequence[Adapter]) -> Uses:
        """The adapters of a request with their scales. Raises: RequestError at the one that cannot be used."""
        found = []
        for index, adapter in enumerate(adapters):
            try:
                found.append((self.get(components, adapter.file), adapter.scale))
            except AdapterError as exc:
                raise RequestError(f"the adapter cannot be used: {exc}", ("loras", index, "path")) from exc
        return tuple(found)

    def forget(self, model: str) -> None:
        """Drop what was fitted to a model that is unloaded."""
        for key in [key for key in self._held if key[0] == model]:
            self._drop(key)

    def _read(self, components: Model, file: str) -> FittedAdapter:
        if self._files is None:
            raise AdapterError("this server keeps no adapters")
        try:
            weights = self._files.take(file, components.spec.family)
        except OSError as exc:
            raise AdapterError("its file is gone; send the request again") from exc
        adapter = fit(weights, components.transformer, components.text_encoder, components.device, components.dtype)
        if adapter.nbytes > self._max_bytes:
            raise AdapterError(
                f"it needs {adapter.nbytes >> 20} MiB; adapters may take {self._max_bytes >> 20} MiB here"
            )
        return adapter

    def _keep(self, key: tuple[str, str], adapter: FittedAdapter) -> None:
        self._held[key] = adapter
        self.nbytes += adapter.nbytes
        while self.nbytes > self._max_bytes:
            self._drop(next(iter(self._held)))

    def _drop(self, key: tuple[str, str]) -> None:
        self.nbytes -= self._held.pop(key).nbytes


NO_ADAPTERS = AdapterCache(None, 0)
