"""Parts of uploads in a bucket: any node takes the next part, and any joins them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from server.files.s3_bucket import Bucket
from server.files.uploads import UploadError

PARTS = "parts/"
_PIECE_BYTES = 16 << 20


class S3Parts:
    """See `Parts`. Args: scratch: a folder of this node's, for joining."""

    def __init__(self, bucket: Bucket, scratch: Path) -> None:
        self._bucket = bucket
        self._scratch = scratch

    def keep(self, key: str, name: str, file: Path) -> None:
        with file.open("rb") as source:
            self._bucket.put(f"{PARTS}{key}/{name}", source)
        file.unlink()

    def sizes(self, key: str) -> dict[str, int]:
        return {listed.name.rpartition("/")[2]: listed.size for listed in self._bucket.names(f"{PARTS}{key}/")}

    def joined(self, key: str, names: Sequence[str]) -> IO[bytes]:
        """Raises: UploadError where a part has gone meanwhile: another call has joined them, or they were too old."""
        sizes = self.sizes(key)
        target = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115 - the caller closes it
        try:
            for name in names:
                for start in range(0, sizes.get(name, 0), _PIECE_BYTES):
                    target.write(self._bucket.get(f"{PARTS}{key}/{name}", start, _PIECE_BYTES) or b"")
            if target.tell() != sum(sizes.get(name, -1) for name in names):
                raise UploadError("Parts of this upload are gone; send them again")
        except BaseException:
            target.close()
            raise
        target.seek(0)
        return target

    def drop(self, key: str) -> None:
        self._bucket.delete([listed.name for listed in self._bucket.names(f"{PARTS}{key}/")])

    def drop_older(self, moment: float) -> None:
        self._bucket.delete([listed.name for listed in self._bucket.names(PARTS) if listed.modified <= moment])
