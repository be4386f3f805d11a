"""The worker process, one a device: reads the node's frames, runs the engine's step loop, sends what happens.

    python -m pipelines.worker --fd N --device cuda:0 --dtype auto --model flux-shapes

The parent keeps the other end of the inherited socket; when it closes, or the parent dies, the worker exits. Nothing is
lost with a worker: the node runs its requests again.
"""

from __future__ import annotations

import argparse
import os

# OpenMP threads spin between two operations by default. Beside any other load on the same cores a step then takes
# ten times as long (214 against 19 ms measured on two busy cores). Must be set before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# transformers announces on import which optional packages it would rather have.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from pipelines.worker.signals import leave_signals_to_the_node

if __name__ == "__main__":
    # Importing torch takes seconds, in which a stop would end this process, too.
    leave_signals_to_the_node()

import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from models.accelerator import Accelerator, DeviceError, DeviceLostError, open_accelerator, pick_dtype
from models.arguments import UnknownModelError, resolve_all
from models.construction import CONSTRUCTION
from models.errors import LoadError
from models.loading import silence_libraries
from models.memory import OFFLOADS
from models.offers import offered
from models.tuning import parse_tuning
from pipelines.adapters.cache import ADAPTER_BYTES, AdapterCache
from pipelines.engine.acceleration import AccelerationChoice
from pipelines.engine.engine import Engine
from pipelines.families.pool import ModelPool
from pipelines.families.split import Team
from pipelines.ops.ranks import Ranks
from pipelines.protocol import lookups
from pipelines.protocol.frames import (
    Cancel,
    Heartbeat,
    Loading,
    Log,
    Ready,
    Shutdown,
    Sleep,
    Submit,
    Wake,
)
from pipelines.protocol.params import ACCELERATIONS, GenerationParams
from pipelines.worker.arrivals import Arrivals
from pipelines.worker.idle import Idle
from pipelines.worker.link import Link
from pipelines.worker.team import ANSWER_S, Followers, obey
from pipelines.worker.warmup import Size, sizes_to_warm, warm_up

HEARTBEAT_S = 0.5
POLL_S = 0.002
"""Pause between two looks at a prompt or picture under way, where the device cannot call back."""
EXIT_BROKEN = 3
"""Exit status when the model, the device or an argument is at fault: a restart will not help by itself."""


WarmUp = Callable[[str, Engine], None]
"""Draws what has to be drawn before the model of this name is ready on this engine."""


def serve(
    link: Link,
    pool: ModelPool,
    accelerator: Accelerator,
    warm_up_model: WarmUp,
    unload_after_s: float | None = None,
) -> int:
    """Load every model, warm it up, then step until told to stop. Returns the exit status.

    Args: unload_after_s: idle for so long, it frees the device; the next request loads what it needs.
    """
    models = [_describe(pool, name) for name in pool.specs]
    pool.load_all()
    for model in models:
        model["acceleration"] = _levels(pool, model["name"])
    engine = Engine(
        pool.runner,
        accelerator,
        on_ready=link.wake,
        choose_acceleration=pool.choose_acceleration,
        switch_ms=pool.switch_ms,
    )
    # A model that was unloaded again is warmed up by its first request: loading it now would unload others.
    for name in pool.loaded:
        warm_up_model(name, engine)
    ready = Ready(str(accelerator.device), accelerator.name, models, pool.on_demand)
    link.send(ready)
    idle = Idle(pool, unload_after_s, lambda sentence: link.send(Log("info", sentence)))
    arrivals = Arrivals(engine, pool, link.wake)
    poll_s = HEARTBEAT_S if accelerator.notifies else POLL_S
    last_beat, pause_s = 0.0, 0.0
    while True:
        for frame in link.receive(pause_s):
            if isinstance(frame, Submit):
                arrivals.add(frame)
            elif isinstance(frame, Cancel):
                arrivals.abort(frame)
            elif isinstance(frame, Sleep):
                idle.sleep()
            elif isinstance(frame, Wake):
                idle.wake()
                link.send(ready)
            elif isinstance(frame, Shutdown):
                return 0
        steps_before = engine.steps
        events = arrivals.look()
        with CONSTRUCTION.undisturbed():
            events += engine.step(wait=False)
        for event in events:
            link.send(event)
        has_moved = bool(events) or engine.steps > steps_before
        pause_s = 0.0 if has_moved else poll_s if engine.has_work else HEARTBEAT_S
        idle.look(is_busy=engine.has_work or has_moved or arrivals.waiting > 0 or pool.is_loading)
        now = time.monotonic()
        if now - last_beat >= HEARTBEAT_S:
            last_beat = now
            load_ms = engine.scheduler.load_ms
            memory = accelerator.memory() | {"adapters": pool.adapter_bytes}
            held = engine.running, engine.waiting + arrivals.waiting, load_ms
            link.send(Heartbeat(engine.steps, *held, memory, pool.loaded, engine.tally.counts(), lookups.counts()))


def _describe(pool: ModelPool, name: str) -> dict[str, Any]:
    """What Ready says about one model; loads it."""
    runner = pool.runner(name)
    components = runner.components
    return {
        "name": name,
        "family": components.spec.family,
        "variant": components.spec.variant,
        "has_safety_checker": runner.has_safety_checker,
        "guidance_embeds": components.guidance_embeds,
        "size_multiple": runner.limits.size_multiple,
        "max_pixels": runner.limits.max_pixels,
        "dtype": str(components.dtype).removeprefix("torch."),
        "load_s": components.load_s,
        "shared": sorted(components.shared),
    }


def _levels_with_weights(pool: ModelPool, name: str) -> tuple[str, ...]:
    """One level of acceleration for each set of weights that the model has here."""
    first: dict[str, str] = {}
    for level, choice in _choices(pool, name).items():
        first.setdefault(choice.group, level)
    return tuple(first.values())


def _levels(pool: ModelPool, name: str) -> dict[str, str]:
    """What each level of acceleration does here, in words."""
    return {level: choice.how for level, choice in _choices(pool, name).items()}


def _choices(pool: ModelPool, name: str) -> dict[str, AccelerationChoice]:
    usual = partial(
        GenerationParams, name, "", width=1024, height=1024, num_inference_steps=28, guidance_scale=0.0, seed=0
    )
    levels = (usual(acceleration=level) for level in ACCELERATIONS)
    return {params.acceleration: pool.choose_acceleration(params) for params in levels}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipelines.worker", description=__doc__.splitlines()[0])
    parser.add_argument("--fd", type=int, required=True, help="inherited socket to the node")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<index>; several share every step")
    parser.add_argument("--rank", type=int, default=0, help="which of several; the first starts the others")
    parser.add_argument("--store", type=int, help="inherited file through which they find one another")
    parser.add_argument("--dtype", default="auto", help="auto, bfloat16, float16 or float32")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--acceleration", default="max", help="the most that requests get: none, regular, high or max")
    parser.add_argument("--offload", choices=OFFLOADS, default="none", help="what stays on the host")
    parser.add_argument("--tuning", default="", help="switches of models.tuning, name=value, with commas between")
    parser.add_argument("--model", action="append", required=True, help="name, folder or owner/repo; repeatable")
    parser.add_argument("--on-demand", action="append", default=[], help="as --model; loaded by a request; repeatable")
    parser.add_argument("--fetch-on-demand", action="store_true", help="such a request may download it")
    parser.add_argument("--model-dir", type=Path, action="append", default=[], help="where single files are sought")
    parser.add_argument("--no-mmap", action="store_true", help="read files of weights instead of mapping them")
    parser.add_argument("--unload-after", type=float, default=None, help="idle seconds after which weights go")
    parser.add_argument("--memory-gb", type=float, default=None, help="weights held at once; default: all")
    parser.add_argument("--adapters", type=Path, default=None, help="folder of the LoRAs that requests name")
    parser.add_argument("--warmup", choices=("auto", "none", "full"), default="auto")
    parser.add_argument("--warmup-size", type=_size, action="append", default=[], help="WIDTHxHEIGHT; repeatable")
    return parser.parse_args(argv)


def _size(text: str) -> Size:
    width, _, height = text.partition("x")
    return int(width), int(height)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one worker. Returns the exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = parse_arguments(given)
    link = Link(socket.socket(fileno=arguments.fd))
    silence_libraries()
    torch.set_grad_enabled(False)
    try:
        return _run(link, arguments, given)
    except (LoadError, DeviceError, UnknownModelError, ValueError) as exc:
        link.send(Log("error", str(exc)))
        return EXIT_BROKEN
    except Exception as exc:
        if isinstance(exc, DeviceLostError):
            time.sleep(ANSWER_S)  # the thread that misses another process names it, and ends this one
        link.send(Log("critical", f"the worker ends: {type(exc).__name__}: {exc}"))
        traceback.print_exc()
        return 1
    finally:
        link.close()


def _adapter_bytes(memory_bytes: int | None) -> int:
    """Less where weights are short of room."""
    return ADAPTER_BYTES if memory_bytes is None else min(ADAPTER_BYTES, memory_bytes // 8)


def _open(link: Link, arguments: argparse.Namespace, given: list[str]) -> tuple[Accelerator, Team | None]:
    """This process's device, and the others that steps are shared out over."""
    devices = arguments.device.split(",")
    if len(devices) == 1:
        return open_accelerator(devices[0]), None
    if arguments.rank:
        accelerator = open_accelerator(devices[arguments.rank])
        return accelerator, Team(Ranks(arguments.rank, len(devices), arguments.store, accelerator.device))

    def end(sentence: str, status: int) -> None:
        link.send(Log("error", sentence))
        link.close()
        os._exit(EXIT_BROKEN if status == EXIT_BROKEN else 1)

    followers = Followers(devices, given, end, link.send)
    accelerator = open_accelerator(devices[0])
    ranks = Ranks(0, len(devices), followers.store, accelerator.device)
    return accelerator, Team(ranks, followers.tell, followers.settle, followers.hear)


def _run(link: Link, arguments: argparse.Namespace, given: list[str]) -> int:
    specs = resolve_all(arguments.model, arguments.model_dir)
    accelerator, team = _open(link, arguments, given)
    memory_bytes = None if arguments.memory_gb is None else int(arguments.memory_gb * 1e9)
    pool = ModelPool(
        specs,
        accelerator,
        pick_dtype(arguments.dtype, accelerator),
        arguments.quantization,
        memory_bytes,
        lambda model, stage, fraction: link.send(Loading(model, stage, fraction)),
        arguments.acceleration,
        offload=arguments.offload,
        tuning=parse_tuning(arguments.tuning),
        note=lambda sentence: link.send(Log("info", sentence)),
        adapters=AdapterCache(arguments.adapters, _adapter_bytes(memory_bytes)),
        maps=not arguments.no_mmap,
        offers=offered(arguments.model, arguments.on_demand, arguments.model_dir, arguments.fetch_on_demand),
        team=team,
    )
    if team is not None and arguments.rank:
        obey(link, pool, team.ranks, accelerator)

    def warm_up_model(name: str, engine: Engine) -> None:
        sizes = sizes_to_warm(arguments.warmup, accelerator.kind, pool.runner(name).limits, arguments.warmup_size)
        # The first round compiles; the second, on the serving engine, times the steps where they are worth timing.
        throwaway = Engine(pool.runner, accelerator, choose_acceleration=pool.choose_acceleration)
        engines = [throwaway, engine] if len(sizes) > 1 else [throwaway]

        def progress(done: int, total: int) -> None:
            if done < total:
                link.send(Loading(name, f"warming up {done + 1}/{total}", done / total))

        for sentence in warm_up(engines, pool.specs[name], sizes, progress, _levels_with_weights(pool, name)):
            link.send(Log("warning", f"warming up {sentence}"))

    return serve(link, pool, accelerator, warm_up_model, arguments.unload_after)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # daemon threads may sit in recv; CUDA teardown after an error can hang
