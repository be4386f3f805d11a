"""A file layer for SQLite that can lose power: what was synced stays, of the rest some sectors do, at random."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import apsw

SECTOR = 512


class _Disk:
    """One file: its content as of the last sync, and the changes since then in order."""

    def __init__(self) -> None:
        self.synced = bytearray()
        self.pending: list[tuple[int, bytes | None]] = []

    def sync(self) -> None:
        for offset, data in self.pending:
            _apply(self.synced, offset, data)
        self.pending.clear()

    def after_cut(self, dice: random.Random) -> bytes:
        """Half of the sectors that were written and not synced made it to the disk, in no order."""
        image = bytearray(self.synced)
        for offset, data in self.pending:
            if dice.random() < 0.5:
                _apply(image, offset, data)
        return bytes(image)


def _apply(image: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del image[offset:]
        return
    image.extend(bytes(max(0, offset + len(data) - len(image))))
    image[offset : offset + len(data)] = data


class PowerCutVFS(apsw.VFS):
    """Cuts the power at the `cut_after`-th write or sync: from then on nothing reaches the disks that it shows."""

    def __init__(self, name: str, cut_after: int, dice: random.Random) -> None:
        super().__init__(name, "")
        self.name = name
        self.disks: dict[str, _Disk] = {}
        self.is_cut = False
        self._left = cut_after
        self._images: dict[str, bytes] = {}
        self._dice = dice

    def xOpen(self, name: Any, flags: Any) -> apsw.VFSFile:
        path = name.filename() if isinstance(name, apsw.URIFilename) else str(name)
        disk = self.disks.setdefault(path, _Disk())
        return _File(self, disk, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        super().xDelete(filename, syncdir)
        self.disks.pop(filename, None)

    def tick(self) -> None:
        """One more write or sync; the power may fail right before it."""
        self._left -= 1
        if self._left == 0:
            self.is_cut = True
            self._images = {path: disk.after_cut(self._dice) for path, disk in self.disks.items()}

    def restore(self, folder: Path) -> None:
        """Put the files as the cut left them into a folder."""
        for path, image in self._images.items():
            (folder / Path(path).name).write_bytes(image)


class _File(apsw.VFSFile):
    def __init__(self, vfs: PowerCutVFS, disk: _Disk, name: Any, flags: Any) -> None:
        super().__init__("", name, flags)
        self._vfs = vfs
        self._disk = disk

    def xWrite(self, data: bytes, offset: int) -> None:
        self._vfs.tick()
        super().xWrite(data, offset)
        for start in range(0, len(data), SECTOR):
            self._disk.pending.append((offset + start, bytes(data[start : start + SECTOR])))

    def xTruncate(self, size: int) -> None:
        super().xTruncate(size)
        self._disk.pending.append((size, None))

    def xSync(self, flags: int) -> None:
        self._vfs.tick()
        self._disk.sync()
