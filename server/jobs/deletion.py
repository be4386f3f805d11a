"""Deleting a request at its owner's word: its row first, durably, then the pictures that the row named."""

from __future__ import annotations

from collections.abc import Callable

from server.files import disk
from server.files.objects import KEY_IN_TEXT, Objects
from server.jobs.store.base import Store
from server.jobs.store.job import Job, Outcome


class NotEndedError(Exception):
    """It still waits or runs."""


def delete(job: Job, store: Store, objects: Objects) -> dict[str, str | None] | None:
    """Delete an ended job and the files of its result; files of its input may be another's, too, and stay.

    Returns: every file's address and what kept it from being deleted, if anything; None if the job is gone already.
    Raises: NotEndedError, StoreError.
    """
    gone = store.delete(job.id)
    if gone is None:
        if store.get(job.id) is not None:
            raise NotEndedError
        return None
    return {address: _refusal(objects.delete, address) for address in _results(gone.outcome)}


def _results(outcome: Outcome | None) -> list[str]:
    images = outcome.body.get("images", ()) if outcome else ()
    urls = [image.get("url") for image in images if isinstance(image, dict)]
    return [url for url in urls if isinstance(url, str) and KEY_IN_TEXT.fullmatch(url)]


def _refusal(remove: Callable[[str], bool], address: str) -> str | None:
    try:
        remove(address.rpartition("/")[2])
    except OSError as exc:
        return disk.describe(exc)
    return None
