"""Polls are let through a few in a turn of the loop, in order, and nobody is forgotten."""

from __future__ import annotations

import asyncio

from server.http.pacing import COMPANY_S, PACE_S, Company, Lanes, Pacer


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


def test_one_crowd_after_another_passes() -> None:
    async def run() -> list[int]:
        pacer, seen = Pacer(2), list[int]()
        async with asyncio.timeout(10):
            for first in (0, 3, 6):
                await asyncio.gather(*(_through(pacer, first + number, seen) for number in range(3)))
                await asyncio.sleep(0.001)
        return seen

    assert asyncio.run(run()) == list(range(9))


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


def test_keys_take_turns_in_a_crowd() -> None:
    async def run() -> list[str]:
        pacer, seen = Pacer(2), list[str]()

        async def ask(whose: str) -> None:
            await pacer.wait(whose)
            seen.append(whose)

        async with asyncio.TaskGroup() as group:
            for whose in "aaaaaaaaab":
                group.create_task(ask(whose))
        return seen

    seen = asyncio.run(run())
    assert seen.count("a") == 9
    assert seen.index("b") <= 3, "one call of another key does not wait for the whole crowd"


def test_no_key_has_two_turns_while_others_wait_for_one() -> None:
    async def run() -> str:
        pacer, seen = Pacer(1), list[str]()

        async def ask(whose: str) -> None:
            await pacer.wait(whose)
            seen.append(whose)

        async with asyncio.TaskGroup() as group:
            for whose in "aaabbbccc":
                group.create_task(ask(whose))
        return "".join(seen)

    assert asyncio.run(run())[1:4] == "abc"


async def _held(lanes: Lanes, whose: str, inside: list[str], go_on: asyncio.Event) -> None:
    async with lanes.turn(whose):
        inside.append(whose)
        await go_on.wait()


def test_a_few_calls_of_each_key_are_under_way_at_once() -> None:
    async def run() -> tuple[list[str], list[str], int]:
        lanes, inside, go_on = Lanes(2), list[str](), asyncio.Event()
        tasks = [asyncio.create_task(_held(lanes, whose, inside, go_on)) for whose in "aaaabaa"]
        await asyncio.sleep(0.01)
        before = list(inside)
        tasks[2].cancel()  # one that waits leaves
        go_on.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        return before, inside, len(lanes)

    before, after, left = asyncio.run(run())
    assert sorted(before) == ["a", "a", "b"]
    assert sorted(after) == ["a"] * 5 + ["b"]
    assert left == 0, "a key without calls is forgotten"


def test_among_others_a_key_begins_its_calls_at_a_pace_after_the_first_few() -> None:
    async def run(others: str) -> list[float]:
        lanes, began = Lanes(3), list[float]()

        async def call() -> None:
            async with lanes.turn("a"):
                began.append(asyncio.get_running_loop().time())

        for whose in others:
            lanes.note(whose)
        await asyncio.gather(*(call() for _ in range(6)))
        return began

    alone, among = asyncio.run(run("aa")), asyncio.run(run("aba"))
    assert among[5] - among[2] >= 3 * PACE_S - 0.001
    assert alone[5] - alone[0] < among[5] - among[0], "a key that is alone waits for nobody"


def test_a_call_that_weighs_more_is_followed_later() -> None:
    async def run() -> tuple[float, float, float]:
        lanes, now = Lanes(1), asyncio.get_running_loop().time
        for whose in "ab":
            lanes.note(whose)
        lanes.charge("b", 1000.0)  # of a key that has no call under way: nothing
        before = now()
        async with lanes.turn("a", 2.0):
            lanes.charge("a", 3.0)
        async with lanes.turn("a"):
            second = now()
        async with lanes.turn("b"):
            return before, second, now()

    before, second, other = asyncio.run(run())
    assert second - before >= 5 * PACE_S - 0.001
    assert other - before < 1000 * PACE_S


def test_company_is_whoever_else_called_lately() -> None:
    company = Company()
    assert not company.of("a", 0.0)
    company.note("b", 10.0)
    company.note("a", 10.5)
    company.note("a", 10.9)
    assert company.of("a", 10.9)
    assert not company.of("a", 10.0 + COMPANY_S), "b has gone"
    assert company.of("b", 11.0)
    assert company.of("c", 11.0)


def test_a_pause_lets_the_next_one_begin_after_it() -> None:
    async def run() -> list[str]:
        lanes, seen = Lanes(1), list[str]()

        async def refused(name: str) -> None:
            await lanes.pause("a", 0.01)
            seen.append(name)

        tasks = [asyncio.create_task(refused(name)) for name in ("first", "second")]
        await tasks[0]
        behind = list(seen)
        await asyncio.gather(*tasks)
        return behind

    assert asyncio.run(run()) == ["first"]
