"""What happens at one node is seen at the others within moments, without the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from pipelines.protocol.frames import Progress
from server.jobs import relay as relay_module
from server.jobs.live import MAX_LOG_ENTRIES, LiveChange, LiveJobs
from server.jobs.relay import EVERY_S, MOST_BYTES, Relay
from server.jobs.store.errors import StoreError
from tests.server.api_server import eventually


class Channel:
    """What every node says, every node hears, as PostgreSQL's notices."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[str], None]] = []
        self.texts: list[str] = []
        self.is_cut = False
        self.refused = 0

    def send(self, texts: Sequence[str]) -> None:
        if self.is_cut:
            self.refused += 1
            raise StoreError("cut")
        for text in texts:
            self.texts.append(text)
            for listen in self.listeners:
                listen(text)

    @contextmanager
    def node(self, name: str, is_alone: bool = False) -> Iterator[tuple[LiveJobs, Relay]]:
        live = LiveJobs()
        relay = Relay(live, name, self.send, lambda: is_alone)
        self.listeners.append(relay.take)
        relay.start()
        yield live, relay
        relay.close()


def messages(live: LiveJobs, job_id: str = "job") -> list[str]:
    return [line["message"] for line in live.logs(job_id)]


def test_lines_and_steps_are_seen_elsewhere_as_they_are_here() -> None:
    channel = Channel()
    with channel.node("a") as (here, _), channel.node("b") as (there, _):
        here.note_begun("job", "a/0#1", 12.5)
        here.log("job", "started, ö\ud800", "WARN")
        here.step(Progress("job", 1, 3, 28, 2.5))
        eventually(lambda: there.progress("job") == Progress("job", 1, 3, 28, 2.5))
        assert (there.logs("job"), there.times("job")) == (here.logs("job"), here.times("job"))
        here.start_over("job")
        eventually(lambda: there.progress("job") is None and there.times("job") is None)
        assert messages(there) == messages(here) == ["started, ö\ud800", "step 3/28"]


def test_that_a_job_starts_over_is_heard_before_another_node_has_begun_it(monkeypatch: pytest.MonkeyPatch) -> None:
    channel = Channel()
    with channel.node("a") as (here, _), channel.node("b") as (there, relay):
        eventually(lambda: len(channel.texts) == 2)
        with monkeypatch.context() as patch:
            patch.setattr(relay_module, "EVERY_S", 60.0)
            there.log("job", "taken from its worker", "WARN")
            there.start_over("job")
            eventually(lambda: messages(here) == ["taken from its worker"])
            here.note_begun("job", "a/0#1", 2.0)
            here.log("job", "started, attempt 2")
            there.log("job", "told later")
            time.sleep(3 * EVERY_S)
            assert messages(here) == ["taken from its worker", "started, attempt 2"]
            assert here.times("job") is not None
            relay.close()
        assert messages(here)[2:] == ["told later"], "a close does not wait"


def test_many_steps_are_few_texts() -> None:
    channel = Channel()
    with channel.node("a") as (here, _), channel.node("b") as (there, _):
        eventually(lambda: len(channel.texts) == 2)
        for step in range(1, 151):
            here.step(Progress("job", 1, step, 150))
        eventually(lambda: messages(there) == messages(here) and len(messages(here)) == 150)
    assert len(channel.texts) < 10
    assert max(map(len, channel.texts)) <= MOST_BYTES


def test_a_start_is_heard_of_once_everywhere_however_often_it_is_told() -> None:
    channel = Channel()
    with channel.node("a") as (here, _), channel.node("b") as (there, relay):
        begun: list[tuple[str, str]] = []
        for name, live in (("here", here), ("there", there)):
            live.on_begin(lambda job_id, name=name: begun.append((name, job_id)))  # type: ignore[misc]
        here.note_begun("job", "a/0#1", 1.0)
        for _ in range(50):
            here.log("job", "x" * 1_000)  # more than one text holds
        eventually(lambda: messages(there) == messages(here))
        relay.greet()
        here.step(Progress("job", 1, 1, 2))
        eventually(lambda: there.progress("job") is not None)
        eventually(lambda: begun == [("here", "job"), ("there", "job")])
        here.start_over("job")
        here.note_begun("job", "a/0#1", 2.0)
        eventually(lambda: len(begun) == 4)


@pytest.mark.parametrize("line", ["x" * 20_000, "é" * 2_000])
def test_no_line_is_too_long_for_the_channel(line: str) -> None:
    channel = Channel()
    with channel.node("a") as (here, _), channel.node("b") as (there, _):
        for _ in range(3):
            here.log("job", line)
        eventually(lambda: len(messages(there)) == 3)
    assert messages(there)[0] == line[:1000]
    assert max(map(len, channel.texts)) <= MOST_BYTES


def test_who_comes_later_or_was_cut_off_learns_what_runs() -> None:
    channel = Channel()
    with channel.node("a") as (here, _):
        here.note_begun("job", "a/0#1", 1.0)
        for number in range(MAX_LOG_ENTRIES + 50):
            here.log("job", f"line {number}")
        here.log("waits", "not of interest")
        eventually(lambda: any("interest" in text for text in channel.texts))
        with channel.node("b") as (there, relay):
            eventually(lambda: messages(there) == messages(here))
            assert there.logs("waits") == []
            listeners, channel.listeners = channel.listeners, channel.listeners[:1]
            here.log("job", "while b was deaf")
            eventually(lambda: any("deaf" in text for text in channel.texts))
            channel.listeners = listeners
            relay.greet()
            eventually(lambda: messages(there) == messages(here))


def test_a_channel_that_is_cut_holds_nothing_up() -> None:
    channel = Channel()
    with channel.node("a") as (here, _), channel.node("b") as (there, _):
        channel.is_cut = True
        here.log("job", "lost")
        eventually(lambda: channel.refused > 0)
        channel.is_cut = False
        here.log("job", "heard")
        eventually(lambda: messages(there) == ["heard"])


def test_a_node_that_is_alone_only_asks_whether_it_is() -> None:
    channel = Channel()
    with channel.node("a", is_alone=True) as (here, _):
        eventually(lambda: len(channel.texts) == 1)
        here.log("job", "nobody hears")
        time.sleep(2 * EVERY_S)
    assert "nobody hears" not in "".join(channel.texts)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '["b"', '["b", 7]', '["b", ["job"]]', '["b", ["job", [[1]], 2, 3, 4, 5]]']
)
def test_what_is_not_understood_is_passed_over(text: str) -> None:
    live = LiveJobs()
    Relay(live, "a", lambda texts: None).take(text)
    assert live.version("job") == 0


def test_two_changes_are_one() -> None:
    lines: list[dict[str, Any]] = [{"message": str(number)} for number in range(3)]
    first = LiveChange("job", (lines[0],), Progress("job", 1, 1, 4))
    over = first.then(LiveChange("job", (lines[1],), starts_over=True)).then(LiveChange("job", (lines[2],)))
    assert over == LiveChange("job", tuple(lines), starts_over=True)
    whole = LiveChange("job", (lines[2],), is_whole=True)
    assert first.then(whole) == whole
