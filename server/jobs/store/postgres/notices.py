"""What one node tells the others of its changes: small JSON texts through NOTIFY, in the order of the commits.

A notice carries what `QueueIndex` and `Pending` must know of a job, and nothing that a client sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from server.jobs.store.job import Job, JobStatus, Outcome
from server.jobs.store.rows import SIZE, size_of

MOST_BYTES = 7900
"""PostgreSQL takes payloads below 8,000 bytes."""

LOOK_YOURSELF = "look"
"""In the place of a change that is too large to be told: whoever reads it loads everything again."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Of a row what an index needs.

    Args: as in `Job`; params: only those of its size. input_size: only while it waits.
    """

    seq: int
    id: str
    endpoint: str
    tenant: str
    key_id: str
    status: JobStatus
    created_at: float
    queue_rank: float
    deaths: int
    params: dict[str, Any] | None
    cancel_requested: bool
    input_size: int = 0

    @property
    def outcome(self) -> Outcome | None:
        """Not told to others: whoever asks for it reads the row."""
        return None


@dataclass(frozen=True, slots=True)
class Gone:
    """An ended job that was deleted."""

    id: str
    status: JobStatus


def params_of(size: Sequence[Any]) -> dict[str, Any]:
    """Back from it: what was not given is not there."""
    return {name: value for name, value in zip(SIZE, size, strict=True) if value is not None}


def mark_of(job: Job) -> Mark:
    """Without what the client sent."""
    params = None if job.params is None else params_of(size_of(job))
    return Mark(
        job.seq,
        job.id,
        job.endpoint,
        job.tenant,
        job.key_id,
        job.status,
        job.created_at,
        job.queue_rank,
        job.deaths,
        params,
        job.cancel_requested,
        _input_size(job),
    )


def payloads(changed: Iterable[Job], gone: Iterable[Gone]) -> Iterator[str]:
    """The texts to send for one transaction, in order."""
    entries = [_told(job) for job in changed] + [json.dumps([row.id, row.status]) for row in gone]
    pack: list[str] = []
    length = 2
    for entry in entries:
        told = entry if len(entry) + 2 <= MOST_BYTES else json.dumps(LOOK_YOURSELF)
        if length + len(told) + 1 > MOST_BYTES:
            yield f"[{','.join(pack)}]"
            pack, length = [], 2
        pack.append(told)
        length += len(told) + 1
    if pack:
        yield f"[{','.join(pack)}]"


def read(payload: str) -> list[Mark | Gone | None]:
    """What a notice tells; None for "look yourself", and for what a newer version may have to say."""
    return [_read(entry) for entry in json.loads(payload)]


def _told(job: Job) -> str:
    size = None if job.params is None else size_of(job)
    return json.dumps(
        [
            job.seq,
            job.id,
            job.endpoint,
            job.tenant,
            job.key_id,
            job.status,
            job.created_at,
            job.queue_rank,
            job.deaths,
            size,
            int(job.cancel_requested),
            _input_size(job),
        ]
    )


def _input_size(job: Job) -> int:
    return job.input_size if job.status is JobStatus.QUEUED else 0


def _read(entry: Any) -> Mark | Gone | None:
    match entry:
        case [str(job_id), str(status)]:
            return Gone(job_id, JobStatus(status))
        case [seq, job_id, endpoint, tenant, key_id, status, created_at, rank, deaths, size, cancel, *more]:
            params = None if size is None else params_of(size)
            fixed = seq, job_id, endpoint, tenant, key_id, JobStatus(status), created_at, rank, deaths, params
            return Mark(*fixed, bool(cancel), *more[:1])
        case _:
            return None
