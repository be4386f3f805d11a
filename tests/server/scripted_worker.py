"""A real worker process without an engine: speaks the frames, draws flat colours, and misbehaves when the prompt says.

    python -m tests.server.scripted_worker --fd N --device cpu ... (the arguments of pipelines.worker)

Prompts: "crash" dies in its second step, "hang" stops answering, "oom", "model error", "internal" and "deadline" fail
that way, "silent exit" exits before it starts, "babble" sends what is no frame, "zombie" ends under an older epoch
first. "wait NAME" goes on after its first step when a file NAME is in the folder of gates; "hold NAME" is not even
started before. "load" loads a model first, as one that was unloaded does. Environment: SCRIPTED_STEP_S seconds a step,
SCRIPTED_LOAD_S seconds to load, SCRIPTED_EXIT status to exit with, SCRIPTED_GATES the folder of gates,
SCRIPTED_JOURNAL a file that gets a line for every begun and ended run.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

from models.registry import REGISTRY, siblings
from pipelines.protocol.frames import (
    Cancel,
    Cancelled,
    Failed,
    FailureKind,
    Finished,
    Frame,
    FrameReader,
    Heartbeat,
    Loading,
    Log,
    Note,
    Picture,
    Preview,
    Progress,
    Ready,
    Shutdown,
    Sleep,
    Started,
    Submit,
    Wake,
    encode,
)
from pipelines.worker.signals import leave_signals_to_the_node

STEP_S = float(os.environ.get("SCRIPTED_STEP_S", "0.005"))
GATES = Path(os.environ.get("SCRIPTED_GATES", "/nonexistent"))
JOURNAL = os.environ.get("SCRIPTED_JOURNAL")
IDLE_S = 0.05
"""How often a closed gate is looked at."""
FAILURES: dict[str, FailureKind] = {
    "oom": "out_of_memory",
    "model error": "model_error",
    "internal": "internal",
    "deadline": "deadline",
}


class ScriptedWorker:
    """All its requests advance one step each turn, like the engine's."""

    def __init__(self, sock: socket.socket, device: str, models: list[str]) -> None:
        self.socket = sock
        self.device = device
        self.models = models
        self.reader = FrameReader()
        self.requests: dict[tuple[str, int], tuple[Submit, int]] = {}
        self.held: dict[tuple[str, int], Submit] = {}
        self.steps = 0
        self.loaded = [os.path.basename(model) for model in models]
        self.ready: Ready | None = None

    def send(self, *frames: Frame) -> None:
        self.socket.sendall(b"".join(encode(frame) for frame in frames))

    def load(self) -> None:
        for model in self.models:
            self.send(Loading(model, "weights", 0.5))
            time.sleep(float(os.environ.get("SCRIPTED_LOAD_S", "0")))
        if status := os.environ.get("SCRIPTED_EXIT"):
            self.send(Log("error", "the checkpoint is not here"))
            sys.exit(int(status))
        described = [
            {
                "name": os.path.basename(model),
                "family": "flux",
                "has_safety_checker": True,
                "guidance_embeds": True,
                "size_multiple": 16,
                "dtype": "float32",
                "load_s": 0.0,
            }
            for model in self.models
        ]
        print("scripted worker is loaded", file=sys.stderr)
        known = [REGISTRY[model["name"]] for model in described if model["name"] in REGISTRY]
        on_demand = [spec.name for spec in siblings(known) if spec.draws]
        self.ready = Ready(self.device, "a script", described, on_demand)
        # As when a request wants another model: a worker that loads beside its work stays ready. In one piece, so that
        # no request of a test is given to it in between, which would read of it in its log.
        self.send(self.ready, Log("WARNING", "I am only a script"), Loading("another", "weights", 0.5))

    def serve(self) -> None:
        last_beat = 0.0
        while True:
            going = [key for key, (frame, done) in self.requests.items() if done < 1 or is_open(frame, "wait ")]
            readable, _, _ = select.select([self.socket], [], [], 0 if going else IDLE_S)
            if readable and not self.receive():
                return
            if going:
                time.sleep(STEP_S)
            for key in going:
                if key in self.requests:
                    self.step(key)
            for frame in [frame for frame in self.held.values() if is_open(frame, "hold ")]:
                self.begin(self.held.pop((frame.job_id, frame.epoch)))
            if time.monotonic() - last_beat > 0.1:
                last_beat = time.monotonic()
                held = len(self.requests)
                self.send(Heartbeat(self.steps, held, 0, 10.0 * held, {"allocated": 1}, self.loaded))

    def receive(self) -> bool:
        data = self.socket.recv(1 << 16)
        for frame in self.reader.feed(data):
            if isinstance(frame, Shutdown):
                return False
            if isinstance(frame, Submit):
                self.admit(frame)
            elif isinstance(frame, Cancel):
                self.cancel(frame)
            elif isinstance(frame, Sleep):
                self.loaded = []
            elif isinstance(frame, Wake) and self.ready is not None:
                self.loaded = [os.path.basename(model) for model in self.models]
                self.send(self.ready)
        return bool(data)

    def admit(self, frame: Submit) -> None:
        prompt = frame.params["prompt"]
        if prompt == "silent exit":
            sys.exit(7)
        if prompt in FAILURES:
            self.send(Failed(frame.job_id, frame.epoch, FAILURES[prompt], f"scripted {prompt}"))
            return
        if prompt == "load":
            self.send(*(Loading("flux-shapes", "transformer", done / 100) for done in (0, 25, 28, 100)))
        if frame.params.get("acceleration", "none") != "none":
            self.send(Note(frame.job_id, frame.epoch, "scripted: drawn exactly"))
        if is_open(frame, "hold "):
            self.begin(frame)
        else:
            self.held[frame.job_id, frame.epoch] = frame

    def begin(self, frame: Submit) -> None:
        note("began", frame)
        self.send(Started(frame.job_id, frame.epoch))
        self.requests[frame.job_id, frame.epoch] = (frame, 0)

    def cancel(self, frame: Cancel) -> None:
        key = (frame.job_id, frame.epoch)
        if self.held.pop(key, None) is not None:
            self.send(Cancelled(*key, 0))
        elif key in self.requests:
            _, step = self.requests.pop(key)
            self.send(Cancelled(*key, step))

    def step(self, key: tuple[str, int]) -> None:
        frame, done = self.requests[key]
        self.steps += 1
        self.misbehave(frame, done)
        total = frame.params["num_inference_steps"]
        self.requests[key] = (frame, done + 1)
        self.send(Progress(*key, done + 1, total, 0.1))
        if frame.params.get("preview_every"):
            self.send(Preview(*key, done + 1, 0, 1, 1, bytes(3)))
        if done + 1 >= total:
            self.finish(frame)

    def misbehave(self, frame: Submit, done: int) -> None:
        prompt = frame.params["prompt"]
        if done < 1:
            return
        if prompt == "crash" or (prompt == "crash once" and frame.epoch == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if prompt == "hang" or (prompt == "hang once" and frame.epoch == 1):
            time.sleep(3600)
        if prompt == "babble":
            self.socket.sendall(b"\xff" * 100)
        if prompt == "zombie":
            self.send(*self.end(replace(frame, epoch=frame.epoch - 1)))

    def end(self, frame: Submit) -> list[Frame]:
        params = frame.params
        seeds = [params["seed"] + index for index in range(params["num_images"])]
        size = (params["width"], params["height"])
        pixels = [bytes([seed % 256, 0, 0]) * (size[0] * size[1]) for seed in seeds]
        pictures = [
            Picture(frame.job_id, frame.epoch, index, seed, *size, pixels[index], has_nsfw_concept=False)
            for index, seed in enumerate(seeds)
        ]
        return [*pictures, Finished(frame.job_id, frame.epoch, {"inference": 0.25, "denoise": 0.2})]

    def finish(self, frame: Submit) -> None:
        del self.requests[frame.job_id, frame.epoch]
        self.send(*self.end(frame))
        note("ended", frame)


def note(what: str, frame: Submit) -> None:
    """One line of the journal, whole even if this process is killed now."""
    if JOURNAL is not None:
        with open(JOURNAL, "ab", buffering=0) as journal:
            journal.write(f"{what} {os.getpid()} {frame.job_id} {frame.epoch}\n".encode())


def is_open(frame: Submit, kind: str) -> bool:
    """Whether no closed gate of this kind keeps the request."""
    prompt = frame.params["prompt"]
    return not prompt.startswith(kind) or (GATES / prompt.removeprefix(kind)).exists()


def main() -> None:
    leave_signals_to_the_node()
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--model", action="append", required=True)
    arguments, _ = parser.parse_known_args()  # the rest is about engines
    worker = ScriptedWorker(socket.socket(fileno=arguments.fd), arguments.device, arguments.model)
    try:
        worker.load()
        worker.serve()
    except (BrokenPipeError, ConnectionResetError):
        sys.exit(0)


if __name__ == "__main__":
    main()
