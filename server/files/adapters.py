"""What a request calls a LoRA becomes a checked file that workers can read.

    .../files/{key}                      one of our own files, whatever host the address names
    http://... and https://...           fetched from the public internet, and what the operator allows besides
    style, style.safetensors             a file of the operator's --adapter-dir
    owner/repo, owner/repo/file          a repository of the Hugging Face hub, with --adapter-hub

Only headers are looked at in this process; the worker that reads the numbers checks them against its model.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import httpx

from models.adapter_files import AdapterError, shown
from server.files import adapter_hub
from server.files.adapter_store import AdapterStore
from server.files.objects import Objects, ObjectsAwayError, StoredObject, why_not_fetched
from server.http.downloads import FAILURES, MAX_REDIRECTS, body_of, refuse_other_redirects, why_failed
from server.http.outgoing import ForbiddenAddressError, Network, VettedTransport

DEADLINE_S = 300.0
"""For one fetch, redirects and all."""
SILENCE_S = 15.0
REMEMBERED_S = 3600.0
"""What an address led to is asked again after so long."""
MAX_REMEMBERED = 10_000
AT_ONCE = 32
"""Files under way from outside: a request may name many addresses, and each may send a gigabyte, slowly."""

_Asked = tuple[str, str]
"""(tenant, path): what one tenant may read, another may not."""
_NAME = re.compile(r"[\w][\w .+-]{0,199}")
_HUB_PAGE = re.compile(r"^(https://huggingface\.co/[\w.-]+/[\w.-]+)/blob/", re.ASCII)
_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}(?:/[\w .+/-]{1,400})?", re.ASCII)


class AdapterRefusedError(Exception):
    """The LoRA cannot be had. Args: kind: fal's error type. message: one sentence for the caller."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind, self.message = kind, message


@dataclass(frozen=True, slots=True)
class _Known:
    """What a path led to. Args: since: on the clock. name: in the store. is_own: it was an upload of ours."""

    since: float
    name: str
    is_own: bool


class Adapters:
    """Finds, fetches and keeps the LoRAs that requests name; one that several ask for at once is fetched once.

    Args:
        objects: our own files.
        folder: the operator's LoRAs; None has none.
        uses_hub: whether names of the form owner/repo may be fetched from the hub.
        max_bytes: of one file.
        allowed: networks that may be reached besides the public internet.
    """

    def __init__(
        self,
        store: AdapterStore,
        objects: Objects,
        folder: Path | None = None,
        uses_hub: bool = False,
        max_bytes: int = 1 << 30,
        allowed: Sequence[Network] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._objects = objects
        self._folder = folder
        self._uses_hub = uses_hub
        self._max_bytes = max_bytes
        self._clock = clock
        self._known: OrderedDict[_Asked, _Known] = OrderedDict()
        self._under_way: dict[_Asked, asyncio.Task[str]] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._client = httpx.AsyncClient(
            transport=VettedTransport(allowed),
            trust_env=False,
            follow_redirects=True,
            max_redirects=MAX_REDIRECTS,
            event_hooks={"response": [refuse_other_redirects]},
            timeout=SILENCE_S,
            # Nothing packed: its true size would be known only after unpacking.
            headers={"accept-encoding": "identity", "user-agent": "fluxserve"},
        )

    async def resolve(self, path: str, tenant: str = "") -> str:
        """The name in the store of the LoRA that a request calls `path`.

        Args: tenant: who asks, for uploads that are not for all. Raises: AdapterRefusedError.
        """
        asked = tenant, path
        known = await self._objects.beside(self._remembered, asked)
        if known is not None:
            return known
        task = self._under_way.get(asked)
        if task is None:
            task = self._under_way[asked] = asyncio.ensure_future(self._find(asked))
            task.add_done_callback(lambda done: self._ended(asked, done))
        return await asyncio.shield(task)  # a caller that goes away must not take the others' file along

    async def aclose(self) -> None:
        """Give up what is under way and close what is open."""
        for task in list(self._under_way.values()):
            task.cancel()
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)
        await self._client.aclose()

    def _ended(self, asked: _Asked, task: asyncio.Task[str]) -> None:
        self._under_way.pop(asked, None)
        if not task.cancelled():
            task.exception()  # all who asked may have gone away: then nobody looks at it

    def _remembered(self, asked: _Asked) -> str | None:
        """What it led to lately, unless it was an upload that is gone since."""
        known = self._known.get(asked)
        if known is None or self._clock() - known.since >= REMEMBERED_S:
            return None
        if known.is_own and self._objects.find(asked[1], asked[0]) is None:
            return None
        return known.name if self._store.has(known.name) else None

    async def _find(self, asked: _Asked) -> str:
        tenant, path = asked
        is_address = path.lower().startswith(("http://", "https://"))
        try:
            own = await self._objects.beside(self._objects.find, path, tenant) if is_address else None
            if own is not None:
                name = await self._objects.beside(self._own, own)
            elif (file := self._named(path)) is not None:
                return await asyncio.to_thread(self._copied, file)  # the operator may replace it at any time
            else:
                name = await (self._at_address(path) if is_address else self._on_hub(path))
        except AdapterError as exc:
            raise AdapterRefusedError("value_error", f"The adapter cannot be used: {exc}") from exc
        except ObjectsAwayError:
            raise
        except OSError as exc:
            raise _not_downloaded(f"the disk refuses ({exc.strerror or 'unknown reason'})") from exc
        self._remember(asked, _Known(self._clock(), name, is_own=own is not None))
        return name

    def _remember(self, asked: _Asked, known: _Known) -> None:
        self._known[asked] = known
        self._known.move_to_end(asked)
        while len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)

    def _named(self, path: str) -> Path | None:
        """The operator's file of this name. It cannot lead elsewhere: a name has no slash and begins with no dot."""
        if self._folder is None or not _NAME.fullmatch(path):
            return None
        candidates = (self._folder / path, self._folder / f"{path}.safetensors")
        return next((file for file in candidates if file.suffix == ".safetensors" and file.is_file()), None)

    def _own(self, stored: StoredObject) -> str:
        """Raises: AdapterRefusedError, AdapterError, OSError."""
        if stored.size > self._max_bytes:
            raise self._too_large()
        path = self._store.new_file()
        try:
            if not self._objects.copy_to(stored, path):
                raise _not_downloaded("it has been deleted")
            return self._store.keep(path)
        finally:
            path.unlink(missing_ok=True)

    def _copied(self, file: Path) -> str:
        if file.stat().st_size > self._max_bytes:
            raise self._too_large()
        return self._store.copy(file)

    async def _at_address(self, url: str) -> str:
        path = await asyncio.to_thread(self._store.new_file)
        try:
            await self._fetch(downloadable(url), path)
            return await asyncio.to_thread(self._store.keep, path)
        finally:
            path.unlink(missing_ok=True)

    async def _fetch(self, url: str, path: Path) -> None:
        try:
            async with self._turns, asyncio.timeout(DEADLINE_S), self._client.stream("GET", url) as answer:
                await self._receive(answer, path)
        except ForbiddenAddressError as exc:
            raise _not_downloaded(why_not_fetched(url, str(exc))) from exc
        except FAILURES as exc:
            raise _not_downloaded(why_failed(exc)) from exc

    async def _receive(self, answer: httpx.Response, path: Path) -> None:
        if answer.status_code != 200:
            raise _not_downloaded(f"its server answered {answer.status_code}")
        if int(answer.headers.get("content-length", "0")) > self._max_bytes:
            raise self._too_large()
        size = 0
        with path.open("wb") as file:
            async with aclosing(body_of(answer, 1 << 20)) as body:
                async for chunk in body:
                    size += len(chunk)
                    if size > self._max_bytes:
                        raise self._too_large()
                    await asyncio.to_thread(file.write, chunk)

    async def _on_hub(self, path: str) -> str:
        if not _HUB_ID.fullmatch(path) or ".." in path:
            raise _unknown(path, self._folder is not None, self._uses_hub)
        if not self._uses_hub:
            raise _unknown(path, self._folder is not None, self._uses_hub)
        try:
            async with self._turns:
                return await asyncio.to_thread(lambda: self._copied(adapter_hub.file_of(path, self._max_bytes)))
        except adapter_hub.HubError as exc:
            raise _not_downloaded(str(exc)) from exc

    def _too_large(self) -> AdapterRefusedError:
        return AdapterRefusedError("file_too_large", f"The adapter is larger than {self._max_bytes >> 20} MiB")


def downloadable(url: str) -> str:
    """The address of the file itself, where people copied that of its page on the hub from the browser."""
    return _HUB_PAGE.sub(r"\1/resolve/", url)


def _not_downloaded(reason: str) -> AdapterRefusedError:
    return AdapterRefusedError("file_download_error", f"The adapter could not be downloaded: {reason}")


def _unknown(path: str, has_folder: bool, uses_hub: bool) -> AdapterRefusedError:
    ways = ["an https URL", "the URL of an uploaded file"]
    ways += ["the name of a file that this server holds"] if has_folder else []
    ways += ["a hub id such as owner/repo"] if uses_hub else []
    how = f"{', '.join(ways[:-1])} or {ways[-1]}"
    return AdapterRefusedError("value_error", f"There is no adapter {shown(path)} here: give {how}")
