"""`fluxserve top`: queue, workers and rates of a running server, in a terminal or once for a program."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from server.cli import operator
from server.cli.failures import USAGE, CommandError
from server.cli.operator import Key, Url
from server.cli.options import DataDir, Json, settings_from

RATES = {
    "requests_per_s": "fluxserve_requests_total",
    "images_per_s": "fluxserve_images_total",
    "megapixels_per_s": "fluxserve_megapixels_total",
}
GPU = "fluxserve_gpu_"

Samples = Mapping[str, list[tuple[dict[str, str], float]]]


@dataclass(frozen=True, slots=True)
class Look:
    """What the server said at one moment. Args: at: seconds of a clock that only goes forward."""

    at: float
    health: Mapping[str, Any]
    samples: Samples

    def total(self, name: str) -> float:
        """Of all series of a counter or gauge."""
        return sum(value for _, value in self.samples.get(name, ()))

    def of_device(self, name: str, device: str) -> float | None:
        """The series of one device; None if there is none."""
        found = (value for labels, value in self.samples.get(name, ()) if labels.get("device") == device)
        return next(found, None)


def top(
    once: Annotated[bool, typer.Option("--once", help="Print one view and end.")] = False,
    every: Annotated[
        float, typer.Option(min=0.2, help="Seconds between two looks; rates are those between them.")
    ] = 2.0,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Show what a running server does: queue, workers, rates, until Ctrl-C. --json prints one object and ends.

    On a server with keys, from another machine, a key with the scope admin is needed (--key or FAL_KEY).
    """
    folder = settings_from(None, data_dir=data_dir).data_dir
    views = _views(every, url, key, folder)
    if as_json:
        print(json.dumps(next(views)))
    elif once:
        _print(next(views))
    elif not sys.stdout.isatty():
        raise CommandError("without a terminal there is no view to follow: give --once or --json", USAGE)
    else:
        _follow(views)


def view(before: Look, now: Look) -> dict[str, Any]:
    """One moment, with the rates since the look before it."""
    seconds = max(now.at - before.at, 1e-9)
    rates = {name: _rate(before.total(counter), now.total(counter), seconds) for name, counter in RATES.items()}
    queue = dict(now.health["queue"]) | {"oldest_s": round(now.total("fluxserve_queue_oldest_seconds"), 1)}
    return {
        "version": now.health.get("version"),
        "state": now.health["state"],
        "problems": list(now.health["problems"]),
        "queue": queue,
        "webhooks_owed": int(now.total("fluxserve_webhooks_owed")),
        "rates": rates,
        "workers": [_worker(worker, before, now, seconds) for worker in now.health["workers"]],
    }


def _worker(worker: Mapping[str, Any], before: Look, now: Look, seconds: float) -> dict[str, Any]:
    device = str(worker["device"])
    steps = "fluxserve_worker_steps_total"
    gpu = {name.removeprefix(GPU): now.of_device(name, device) for name in now.samples if name.startswith(GPU)}
    memory = worker["memory"]
    return {
        "device": device,
        "state": worker["state"],
        "loaded": worker["loaded"],
        "running": worker["running"],
        "waiting": worker["waiting"],
        "load_s": round(worker["load_ms"] / 1e3, 2),
        "steps_per_s": _rate(before.of_device(steps, device) or 0.0, now.of_device(steps, device) or 0.0, seconds),
        "memory_used_bytes": memory.get("used"),
        "memory_total_bytes": memory.get("total"),
        "restarts": worker["restarts"],
        "last_error": worker["last_error"],
        "gpu": {name: value for name, value in gpu.items() if value is not None},
    }


def _rate(before: float, now: float, seconds: float) -> float:
    """A second; a counter that fell has begun anew."""
    return round(max(0.0, now - before if now >= before else now) / seconds, 2)


def _views(every: float, url: str | None, key: str | None, folder: Path) -> Iterator[dict[str, Any]]:
    before = _look(url, key, folder)
    while True:
        time.sleep(every)
        now = _look(url, key, folder)
        yield view(before, now)
        before = now


def _look(url: str | None, key: str | None, folder: Path) -> Look:
    from prometheus_client.parser import text_string_to_metric_families

    health = operator.ask("GET", "/health", url, key, folder)
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(operator.ask_text("/metrics", url, key, folder)):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return Look(time.monotonic(), health, samples)


def _print(shown: Mapping[str, Any]) -> None:
    from rich.console import Console

    Console().print(*_drawn(shown), sep="\n")


def _follow(views: Iterator[dict[str, Any]]) -> None:
    from rich.console import Group
    from rich.live import Live

    try:
        with Live(screen=True, auto_refresh=False) as live:
            for shown in views:
                live.update(Group(*_drawn(shown)), refresh=True)
    except KeyboardInterrupt:
        return


def _drawn(shown: Mapping[str, Any]) -> list[Any]:
    from rich.table import Table

    queue, rates = shown["queue"], shown["rates"]
    lines = [
        f"fluxserve {shown['version']}: {shown['state']}",
        f"waiting {queue['queued']} (oldest {queue['oldest_s']:g} s), running {queue['running']}, "
        f"webhooks owed {shown['webhooks_owed']}",
        f"a second: {rates['requests_per_s']:g} requests, {rates['images_per_s']:g} pictures, "
        f"{rates['megapixels_per_s']:g} megapixels",
        *shown["problems"],
    ]
    table = Table(box=None, pad_edge=False)
    for heading in (
        "device",
        "state",
        "running",
        "waiting",
        "work",
        "steps/s",
        "memory",
        "GPU",
        "power",
        "starts",
        "holds",
    ):
        table.add_column(heading)
    for worker in shown["workers"]:
        table.add_row(*_cells(worker))
    return [*lines, table]


def _cells(worker: Mapping[str, Any]) -> list[str]:
    gpu = worker["gpu"]
    used, total = worker["memory_used_bytes"], worker["memory_total_bytes"]
    return [
        worker["device"],
        worker["state"],
        str(worker["running"]),
        str(worker["waiting"]),
        f"{worker['load_s']:g} s",
        f"{worker['steps_per_s']:g}",
        f"{used / 1e9:.1f} of {total / 1e9:.1f} GB" if used and total else "",
        f"{gpu['utilization_ratio']:.0%}" if "utilization_ratio" in gpu else "",
        f"{gpu['power_watts']:.0f} W" if "power_watts" in gpu else "",
        str(worker["restarts"]),
        ", ".join(worker["loaded"]) or worker["last_error"] or "",
    ]
