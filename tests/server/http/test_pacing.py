"""Polls are let through a few in a turn of the loop, in order, and nobody is forgotten."""

from __future__ import annotations

import asyncio

from server.http.pacing import Pacer


async def _through(pacer: Pacer, number: int, seen: list[int]) -> None:
    await pacer.wait()
    seen.append(number)


def test_a_few_pass_at_once() -> None:
    async def run() -> list[int]:
        pacer, seen = Pacer(4), list[int]()
        await asyncio.gather(*(_through(pacer, number, seen) for number in range(4)))
        return seen

    assert asyncio.run(run()) == [0, 1, 2, 3]


def test_a_crowd_passes_in_order_and_others_get_their_turns_between() -> None:
    async def run() -> tuple[list[int], list[int]]:
        pacer, seen, other = Pacer(5), list[int](), list[int]()

        async def somebody_else() -> None:
            for _ in range(4):
                await asyncio.sleep(0)
                other.append(len(seen))

        async with asyncio.TaskGroup() as group:
            for number in range(100):
                group.create_task(_through(pacer, number, seen))
            group.create_task(somebody_else())
        return seen, other

    seen, other = asyncio.run(run())
    assert seen == list(range(100))
    assert max(other) <= 25, "who needs four pacer waited for more than four pacer of the crowd"


def test_who_leaves_while_waiting_holds_nobody_up() -> None:
    async def run() -> list[int]:
        pacer, seen = Pacer(1), list[int]()
        tasks = [asyncio.create_task(_through(pacer, number, seen)) for number in range(6)]
        await asyncio.sleep(0)
        for task in tasks[2:5]:
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        await asyncio.wait_for(pacer.wait(), 10)
        return seen

    assert asyncio.run(run()) == [0, 1, 5]
