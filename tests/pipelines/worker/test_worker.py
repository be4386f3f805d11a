"""The worker as a real process over a real socketpair."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines.protocol import frames as protocol
from pipelines.protocol.frames import Frame, FrameReader
from tests.pipelines.driving import make_params

START_S = 60


class Peer:
    """The node's end of one worker."""

    def __init__(self, *arguments: str, program: tuple[str, ...] = ("-m", "pipelines.worker")) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(START_S)
        command = [sys.executable, *program, "--fd", str(theirs.fileno()), *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        root = Path(__file__).parents[3]
        self.process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env=environment, cwd=root, stderr=subprocess.DEVNULL
        )
        theirs.close()
        self._reader = FrameReader()
        self._pending: list[Frame] = []

    def send(self, frame: Frame) -> None:
        self._socket.sendall(protocol.encode(frame))

    def frames(self) -> Iterator[Frame]:
        """Frames as they come, until the worker hangs up."""
        while True:
            while self._pending:
                yield self._pending.pop(0)
            data = self._socket.recv(1 << 16)
            if not data:
                return
            self._pending += self._reader.feed(data)

    def until(self, kind: type[Frame], job_id: str | None = None) -> list[Frame]:
        """Frames up to the first of this kind (of this job), included."""
        seen: list[Frame] = []
        for frame in self.frames():
            seen.append(frame)
            if isinstance(frame, kind) and job_id in (None, getattr(frame, "job_id", None)):
                return seen
        raise AssertionError(f"the worker hung up before {kind.__name__}; last: {seen[-3:]}")

    def hang_up(self) -> None:
        self._socket.close()


@contextmanager
def worker(*arguments: str, program: tuple[str, ...] = ("-m", "pipelines.worker")) -> Iterator[Peer]:
    peer = Peer(*arguments, program=program)
    try:
        yield peer
    finally:
        peer.hang_up()
        peer.process.kill()
        peer.process.wait()


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    with worker("--device", "cpu", "--model", "random:tiny") as peer:
        loading = peer.until(protocol.Ready)
        assert any(isinstance(frame, protocol.Loading) for frame in loading)
        ready = loading[-1]
        assert isinstance(ready, protocol.Ready)
        assert ready.models[0]["name"] == "random:tiny"
        assert ready.models[0]["size_multiple"] == 8
        assert ready.models[0]["has_safety_checker"] is False
        yield peer


def test_a_request_is_started_progresses_and_finishes(peer: Peer) -> None:
    peer.send(protocol.Submit("a", 3, make_params(num_images=2).to_dict()))
    frames = [f for f in peer.until(protocol.Finished, "a") if getattr(f, "job_id", None) == "a"]
    assert all(f.epoch == 3 for f in frames)  # type: ignore[union-attr]
    assert isinstance(frames[0], protocol.Started)
    assert [f.step for f in frames if isinstance(f, protocol.Progress)] == [1, 2, 3, 4]
    pictures = [f for f in frames if isinstance(f, protocol.Picture)]
    assert sorted((f.index, f.seed) for f in pictures) == [(0, 7), (1, 8)]
    assert all(len(f.pixels) == f.width * f.height * 3 for f in pictures)
    finished = frames[-1]
    assert isinstance(finished, protocol.Finished)
    assert set(finished.timings) == {"queue_wait", "encode", "denoise", "decode", "safety", "device", "inference"}


def test_cancel_is_answered_and_the_rest_goes_on(peer: Peer) -> None:
    peer.send(protocol.Submit("slow", 1, make_params(num_inference_steps=20_000).to_dict()))
    peer.send(protocol.Submit("quick", 1, make_params().to_dict()))
    peer.until(protocol.Finished, "quick")
    peer.send(protocol.Cancel("slow", 1))
    cancelled = peer.until(protocol.Cancelled, "slow")[-1]
    assert isinstance(cancelled, protocol.Cancelled)
    assert cancelled.step < 20_000


def test_what_the_model_cannot_draw_fails_with_the_limit(peer: Peer) -> None:
    peer.send(protocol.Submit("big", 1, make_params(width=2048, height=2048).to_dict()))
    failed = peer.until(protocol.Failed, "big")[-1]
    assert isinstance(failed, protocol.Failed)
    assert failed.kind == "model_error"
    assert "1048576" in failed.message


def test_an_idle_worker_beats(peer: Peer) -> None:
    peer.until(protocol.Heartbeat)
    began = time.monotonic()
    beat = peer.until(protocol.Heartbeat)[-1]
    assert isinstance(beat, protocol.Heartbeat)
    assert beat.memory["used"] > 0
    assert time.monotonic() - began < 5


def test_a_worker_warms_up_every_size_and_takes_what_arrives_meanwhile() -> None:
    sizes = ("--warmup-size", "48x32", "--warmup-size", "32x32", "--warmup-size", "48x32")
    with worker("--device", "cpu", "--model", "random:tiny", "--warmup", "full", *sizes) as peer:
        peer.send(protocol.Submit("early", 1, make_params().to_dict()))
        frames = peer.until(protocol.Ready)
        stages = [frame.stage for frame in frames if isinstance(frame, protocol.Loading)]
        assert [s for s in stages if s.startswith("warming up")] == [f"warming up {k}/4" for k in (1, 2, 3, 4)]
        assert not any(isinstance(frame, protocol.Started | protocol.Picture) for frame in frames)
        peer.until(protocol.Finished, "early")


def test_a_size_that_cannot_be_drawn_is_said_and_does_not_stop_the_worker() -> None:
    script = "import pipelines.families.flux1.runner as r, pipelines.worker.__main__ as w, sys, os\n"
    script += "real = r.FluxRunner.denoise\n"
    script += "def denoise(self, rows):\n"
    script += "    if rows[0].request.params.width > 40: raise MemoryError\n"
    script += "    real(self, rows)\n"
    script += "r.FluxRunner.denoise = denoise\n"
    script += "os._exit(w.main(sys.argv[1:]))"
    sizes = ("--warmup-size", "48x32", "--warmup-size", "32x32")
    arguments = ("--device", "cpu", "--model", "random:tiny", "--warmup", "full")
    with worker(*arguments, *sizes, program=("-c", script)) as peer:
        frames = peer.until(protocol.Ready)
        (log,) = [frame for frame in frames if isinstance(frame, protocol.Log)]
        assert (log.level, "48 x 32" in log.message, "memory" in log.message) == ("warning", True, True)
    with worker(*arguments, "--warmup-size", "48x32", program=("-c", script)) as peer:
        log = peer.until(protocol.Log)[-1]
        assert isinstance(log, protocol.Log)
        assert "--offload" in log.message
        assert peer.process.wait(START_S) == 3


def test_shutdown_ends_the_process_with_zero() -> None:
    with worker("--device", "cpu", "--model", "random:tiny") as peer:
        peer.until(protocol.Ready)
        peer.send(protocol.Shutdown())
        assert peer.process.wait(START_S) == 0


def test_a_worker_without_its_node_exits_even_in_mid_request() -> None:
    with worker("--device", "cpu", "--model", "random:tiny") as peer:
        peer.until(protocol.Ready)
        peer.send(protocol.Submit("slow", 1, make_params(num_inference_steps=20_000).to_dict()))
        peer.until(protocol.Progress)
        peer.hang_up()
        assert peer.process.wait(10) == 0


def test_a_model_that_is_not_there_is_one_clear_sentence() -> None:
    with worker("--device", "cpu", "--model", "/no/such/folder") as peer:
        log = peer.until(protocol.Log)[-1]
        assert isinstance(log, protocol.Log)
        assert log.level == "error"
        assert "/no/such/folder" in log.message
        assert peer.process.wait(START_S) == 3


def test_an_idle_worker_frees_its_device_and_loads_again_when_it_is_asked() -> None:
    with worker("--device", "cpu", "--model", "random:tiny", "--unload-after", "0.2") as peer:
        peer.until(protocol.Ready)
        drawn = []
        for job in ("a", "b"):
            peer.send(protocol.Submit(job, 1, make_params().to_dict()))
            frames = peer.until(protocol.Finished, job)
            drawn.append(next(frame.pixels for frame in frames if isinstance(frame, protocol.Picture)))
            (freed,) = [frame for frame in peer.until(protocol.Log) if isinstance(frame, protocol.Log)]
            assert freed.message.startswith("idle for 0.2 s")
        assert any(isinstance(frame, protocol.Loading) for frame in frames)
        assert drawn[0] == drawn[1]


def test_a_worker_that_sleeps_holds_nothing_and_draws_the_same_once_woken() -> None:
    with worker("--device", "cpu", "--model", "random:tiny") as peer:
        peer.until(protocol.Ready)
        drawn = []
        for job in ("a", "b"):
            peer.send(protocol.Submit(job, 1, make_params().to_dict()))
            if job == "a":
                peer.send(protocol.Sleep())  # what was submitted is drawn first
            frames = peer.until(protocol.Finished, job)
            drawn.append(next(frame.pixels for frame in frames if isinstance(frame, protocol.Picture)))
            if job == "a":
                assert any("asleep" in frame.message for frame in peer.until(protocol.Log) if hasattr(frame, "message"))
                beat = peer.until(protocol.Heartbeat)[-1]
                assert isinstance(beat, protocol.Heartbeat)
                assert beat.loaded == []
                peer.send(protocol.Wake())
                assert any(isinstance(frame, protocol.Loading) for frame in peer.until(protocol.Ready))
        assert drawn[0] == drawn[1]
