"""Polls are let through a few in a turn of the loop, in order, and nobody is forgotten."""

from __future__ import annotations

import asyncio

from server.turns import Turns


async def _through(turns: Turns, number: int, seen: list[int]) -> None:
    await turns.take()
    seen.append(number)


def test_a_few_pass_at_once() -> None:
    async def run() -> list[int]:
        turns, seen = Turns(4), list[int]()
        await asyncio.gather(*(_through(turns, number, seen) for number in range(4)))
        return seen

    assert asyncio.run(run()) == [0, 1, 2, 3]


def test_a_crowd_passes_in_order_and_others_get_their_turns_between() -> None:
    async def run() -> tuple[list[int], list[int]]:
        turns, seen, other = Turns(5), list[int](), list[int]()

        async def somebody_else() -> None:
            for _ in range(4):
                await asyncio.sleep(0)
                other.append(len(seen))

        async with asyncio.TaskGroup() as group:
            for number in range(100):
                group.create_task(_through(turns, number, seen))
            group.create_task(somebody_else())
        return seen, other

    seen, other = asyncio.run(run())
    assert seen == list(range(100))
    assert max(other) <= 25, "who needs four turns waited for more than four turns of the crowd"


def test_who_leaves_while_waiting_holds_nobody_up() -> None:
    async def run() -> list[int]:
        turns, seen = Turns(1), list[int]()
        tasks = [asyncio.create_task(_through(turns, number, seen)) for number in range(6)]
        await asyncio.sleep(0)
        for task in tasks[2:5]:
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        await asyncio.wait_for(turns.take(), 10)
        return seen

    assert asyncio.run(run()) == [0, 1, 5]
