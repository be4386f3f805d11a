"""A node that submits to itself and says on standard output what it promised, until it is killed or all has ended.

    python -m tests.server.chaos_node FOLDER LIFE TOTAL

Lines: "acknowledged ID" after a submit returned, "ended ID" after the store recorded an end of a run. The test kills
this process and its workers at random; LIFE makes the ids of every life distinct.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from pipelines.protocol.params import GenerationParams
from server.jobs.store.job import JobStatus, Outcome
from server.node import Node
from server.settings import Settings
from tests.server.stores import new_job

BACKLOG = 12


def say(what: str, job_id: str) -> None:
    os.write(1, f"{what} {job_id}\n".encode())


def watch_ends(node: Node) -> None:
    finish = node.store.finish

    def finish_and_say(job_id: str, owner: str, epoch: int, outcome: Outcome) -> bool:
        is_recorded = finish(job_id, owner, epoch, outcome)
        if is_recorded:
            say("ended", job_id)
        return is_recorded

    store: Any = node.store
    store.finish = finish_and_say


def submit(node: Node, job_id: str) -> None:
    params = GenerationParams("flux-shapes", job_id, 16, 8, num_inference_steps=6, guidance_scale=1.0, seed=1)
    node.jobs.submit(new_job(id=job_id, params=params.to_dict()))
    say("acknowledged", job_id)


def unfinished(node: Node) -> int:
    counts = node.store.counts()
    return counts[JobStatus.QUEUED] + counts[JobStatus.RUNNING]


async def main(folder: Path, life: str, total: int) -> None:
    command = (sys.executable, "-m", "tests.server.scripted_worker")
    node = Node.from_settings(Settings(data_dir=folder, device="cpu,cpu", hang_s=0.5), worker_command=command)
    watch_ends(node)
    await node.start()
    for number in range(total):
        while unfinished(node) >= BACKLOG:  # noqa: ASYNC110 - the backlog is no single job's event
            await asyncio.sleep(0.01)
        await asyncio.to_thread(submit, node, f"{life}-{number}")
    while unfinished(node):  # noqa: ASYNC110 - the same
        await asyncio.sleep(0.01)
    await node.stop()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
