"""The exact result cache: a request that would draw what is stored already is answered from the stored pictures.

Two requests draw the same if endpoint, every decided parameter with a seed of the caller's own, the files' format, and
the build (code, libraries, weights, settings) are the same. Nobody is answered with what another tenant asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson

from server.files.outputs import Outputs
from server.jobs.live import log_entry
from server.jobs.store.accounts import is_cached
from server.jobs.store.base import Store
from server.jobs.store.job import Job, JobStatus, NewJob, Outcome

WITHOUT_EFFECT = ("preview_every",)
"""Parameters that change nothing about the picture."""
OF_DELIVERY = ("sync_mode", "ttl_s", "access", "retries", "traceparent")
"""And what of an output changes nothing about its files."""


class ResultCache:
    """Finds what was drawn before. Any thread.

    Args: build: what else decides the pictures; another build finds nothing of this one.
    """

    def __init__(self, store: Store, outputs: Outputs, build: str) -> None:
        self._store = store
        self._outputs = outputs
        self._build = build

    def answered(self, new: NewJob) -> NewJob:
        """The job with its outcome if its pictures are stored, else with the key under which they will be.

        Raises: StoreError; OSError if a file cannot be copied."""
        if not new.is_repeatable or new.params is None or new.outcome is not None:
            return new
        keyed = replace(new, picture_key=self._key(new))
        drawn = self._store.drawn(keyed)
        outcome = None if drawn is None else self._outcome(keyed, drawn)
        if outcome is not None:
            return replace(new, outcome=outcome)  # without a key: a copy may go sooner than what it was made of
        return new if new.output.get("sync_mode") else keyed  # what is in the answer alone cannot be found again

    def discard(self, new: NewJob) -> None:
        """Delete the files that `answered` made for a job that was not stored."""
        if new.outcome is not None and is_cached(new.outcome):
            self._outputs.discard(new.outcome.body["images"])

    def _key(self, new: NewJob) -> bytes:
        params = {name: value for name, value in (new.params or {}).items() if name not in WITHOUT_EFFECT}
        files = {name: value for name, value in new.output.items() if name not in OF_DELIVERY}
        text = orjson.dumps([self._build, new.endpoint, params, files], option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(text).digest()

    def _outcome(self, new: NewJob, drawn: Job) -> Outcome | None:
        """None if a picture of it is gone."""
        assert drawn.outcome is not None
        images = self._images(new, drawn.outcome.body["images"])
        if images is None:
            return None
        told = [f"answered from the pictures of request {drawn.id}"]
        if new.tags:
            told.insert(0, "tags: " + ", ".join(f"{name}={value}" for name, value in new.tags.items()))
        return Outcome(
            JobStatus.COMPLETED,
            200,
            drawn.outcome.body | {"images": images, "timings": {"inference": 0.0}},
            metrics={"inference_time": 0.0, "cached_request_id": drawn.id},
            logs=[log_entry(line) for line in told],
        )

    def _images(self, new: NewJob, drawn: Sequence[dict[str, Any]]) -> list[dict[str, Any]] | None:
        images: list[dict[str, Any]] = []
        for image in drawn:
            again = self._outputs.deliver_again(
                image,
                bool(new.output.get("sync_mode")),
                new.output.get("ttl_s"),
                new.output.get("access", "allow"),
                new.tenant,
            )
            if again is None:
                self._outputs.discard(images)
                return None
            images.append(again)
        return images
