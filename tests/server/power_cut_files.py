"""A folder that can lose power with the database beside it: what was synced stays, of the rest some does, at random.

The model is harsher than file systems are: a file's name is safe only after a sync of its folder, its content only
after its own, and of what changed since then any part may have reached the disk.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from server.files import folder_objects as objects


@dataclass
class _Content:
    """One file's bytes, whatever its name is."""

    path: Path
    synced: bytes | None = None

    def after_cut(self, dice: random.Random) -> bytes:
        if self.synced is not None:
            return self.synced
        now = self.path.read_bytes() if self.path.exists() else b""
        return now[: dice.randint(0, len(now))]


class PowerCutFolder:
    """Watches what `server.files.folder_objects` does in one folder.

    Args: tick: told before each step; the power may fail in it. is_cut: whether it has.
    """

    def __init__(self, folder: Path, tick: Callable[[], None], is_cut: Callable[[], bool], dice: random.Random) -> None:
        self._folder = folder
        self._tick = tick
        self._is_cut = is_cut
        self._dice = dice
        self._names: dict[str, _Content] = {}
        self._safe: dict[str, _Content] = {}
        self._pending: list[tuple[str, _Content | None]] = []
        self._open: dict[int, _Content | None] = {}
        self._image: dict[str, bytes] | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Everything in between goes through this."""
        real = {"rename": Path.rename, "unlink": Path.unlink}
        shim = mock.Mock(wraps=os)
        shim.open, shim.fsync = self._open_file, self._sync
        for name in ("O_WRONLY", "O_CREAT", "O_EXCL", "O_RDONLY"):
            setattr(shim, name, getattr(os, name))

        def rename(path: Path, target: Path) -> Path:
            self._step()
            content = self._names.pop(path.name)
            self._names[target.name] = content
            content.path = target
            self._pending += [(path.name, None), (target.name, content)]
            return real["rename"](path, target)  # type: ignore[return-value]

        def unlink(path: Path, missing_ok: bool = False) -> None:
            if path.parent == self._folder and path.name in self._names:
                self._step()
                content = self._names.pop(path.name)
                content.synced = content.after_cut(self._dice) if content.synced is None else content.synced
                self._pending.append((path.name, None))
            real["unlink"](path, missing_ok)  # type: ignore[call-arg]

        with (
            mock.patch.object(objects, "os", shim),
            mock.patch.object(Path, "rename", rename),
            mock.patch.object(Path, "unlink", unlink),
        ):
            yield

    def restore(self, folder: Path) -> None:
        """Put the files as the cut left them into a folder."""
        folder.mkdir(mode=0o700)
        for name, data in (self._image or {}).items():
            (folder / name).write_bytes(data)

    def take_image(self) -> None:
        """The power has failed now, if it had not before."""
        if self._image is not None:
            return
        names = dict(self._safe)
        for name, content in self._pending:
            if self._dice.random() < 0.5:
                continue
            if content is None:
                names.pop(name, None)
            else:
                names[name] = content
        self._image = {name: content.after_cut(self._dice) for name, content in names.items()}

    def _step(self) -> None:
        self._tick()
        if self._is_cut():
            self.take_image()

    def _open_file(self, path: Any, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            self._step()
        descriptor = os.open(path, flags, mode)
        self._open[descriptor] = None
        if flags & os.O_CREAT:
            content = _Content(Path(path))
            self._open[descriptor] = self._names[Path(path).name] = content
            self._pending.append((Path(path).name, content))
        return descriptor

    def _sync(self, descriptor: int) -> None:
        self._step()
        content = self._open[descriptor]
        os.fsync(descriptor)
        if content is not None:
            content.synced = content.path.read_bytes()
            return
        for name, kept in self._pending:
            if kept is None:
                self._safe.pop(name, None)
            else:
                self._safe[name] = kept
        self._pending.clear()
