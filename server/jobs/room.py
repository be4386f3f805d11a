"""Keeps results and uploads within so many bytes: the oldest requests go before their time, with their files."""

from __future__ import annotations

from server.files.objects import KEY_IN_TEXT, Objects
from server.files.outputs import FILES_PREFIX
from server.jobs.store.base import Store

SETTLED_S = 300.0
"""A picture is written before the end of its request is; a file this old belongs to one that has ended, or to none."""


def make_room(store: Store, objects: Objects, keep_bytes: int) -> tuple[int, int]:
    """Delete the oldest requests and files until no more than so many bytes are kept.

    A result goes before its pictures do. What a request that has not ended names is spared, and what was written
    within SETTLED_S. Returns: how many requests and files went. Raises: StoreError, with all files kept.
    """
    now = store.now()
    moment = objects.oldest_beyond(keep_bytes, before=now - SETTLED_S)
    if moment is None:
        return 0, 0
    requests = store.sweep(now - moment - SETTLED_S)
    spared = {key for text in store.unfinished_inputs(FILES_PREFIX) for key in KEY_IN_TEXT.findall(text)}
    return len(requests), objects.delete_until(moment, spared)
