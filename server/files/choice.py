"""Which place keeps the files: the data folder, or a bucket."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING

from models.extras import how_to_install
from server.files.addresses import SignedAddresses
from server.files.folder_objects import FolderObjects
from server.files.objects import Objects

if TYPE_CHECKING:
    from server.files.s3_bucket import Bucket


class ObjectsError(Exception):
    """The place cannot be used; the sentence says why."""


def open_objects(
    folder: Path,
    url: str | None,
    endpoint: str | None = None,
    redirects: bool = False,
    clock: Callable[[], float] | None = None,
    addresses: SignedAddresses | None = None,
    threads: Executor | None = None,
) -> Objects:
    """A bucket for an address `s3://BUCKET/PREFIX`, the folder without one. Reaches for nothing.

    Args: endpoint, redirects: of the bucket. clock: Unix seconds. threads: for what waits for the bucket.
    Raises: ObjectsError; OSError if the folder cannot be made.
    """
    how = {} if clock is None else {"clock": clock}
    if url is None:
        return FolderObjects(folder, addresses=addresses, **how)
    bucket = open_bucket(url, endpoint)
    from server.files.s3_objects import S3Objects

    return S3Objects(bucket, addresses=addresses, redirects=redirects, threads=threads, **how)


def open_bucket(url: str, endpoint: str | None) -> Bucket:
    """What keeps the files of such an address. Reaches for nothing. Raises: ObjectsError."""
    if importlib.util.find_spec("boto3") is None:
        raise ObjectsError(f"--objects s3://... needs an optional package: {how_to_install('s3')}")
    # Half a second and 40 MB for those who ask for it.
    from server.files.s3_bucket import Bucket
    from server.files.s3_client import BucketError

    try:
        return Bucket(url, endpoint)
    except BucketError as exc:
        raise ObjectsError(str(exc)) from exc
