"""What `fluxserve doctor` finds of the Ray cluster that places workers: reached, of our version, with room for one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from server.cli.finding import Finding
from server.settings import VERSION, Settings
from server.workers.cluster.address import unusable
from server.workers.cluster.connection import gpus_each

SUBJECT = "cluster"
REACH_S = 3.0
LOOK_S = 90.0
SKEW_S = 60.0
_ROOT = Path(__file__).parents[2]


def shared_workers(settings: Settings) -> list[Finding]:
    """Nothing without `--cluster`. Ray is imported by a child alone."""
    if settings.cluster is None:
        return []
    if why := unusable(settings.cluster):
        return [Finding(SUBJECT, "broken", f"{settings.cluster}: {why}")]
    if why := _unreached(settings.cluster):
        advice = (
            "start the head (ray start --head) and open its port to this machine; ray:// goes to 10001, not to 6379"
        )
        return [Finding(SUBJECT, "broken", f"{settings.cluster} cannot be reached: {why}", advice)]
    found = _look(settings, settings.cluster)
    if "failed" in found:
        return [Finding(SUBJECT, "broken", f"{settings.cluster}: {found['failed']}", _advice(found["failed"]))]
    return [_described(settings.cluster, found), _places(settings, found), *_machines(settings, found)]


def _unreached(address: str) -> str | None:
    """Ray itself would try for half a minute."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname is None or parts.port is None:
        return None  # `auto`: Ray knows where it is
    try:
        socket.create_connection((parts.hostname, parts.port), REACH_S).close()
    except OSError as exc:
        return exc.strerror or str(exc)
    return None


def _look(settings: Settings, address: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "server.workers.cluster.look", "--address", address]
    command += ["--host", settings.worker_host] if settings.worker_host else []
    command += ["--port", str(settings.worker_port)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")])),
    }
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=LOOK_S, env=environment)
    except subprocess.TimeoutExpired:
        return {"failed": f"nothing that Ray understands has answered within {LOOK_S:.0f} s"}
    lines = [line for line in child.stdout.splitlines() if line.startswith("{")]
    if not lines:
        said = (child.stderr.strip().splitlines() or [f"Ray ended the process ({child.returncode})"])[-1]
        return {"failed": said[:300]}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def _advice(said: str) -> str:
    if "ersion mismatch" in said:
        return "install the same versions of Ray and Python on every machine, this one included: requirements-ray.lock"
    return "see the head's logs (/tmp/ray/session_latest/logs), and `ray status` on its machine"


def _described(address: str, found: dict[str, Any]) -> Finding:
    there = found["machines"]
    cpus, gpus = sum(machine["cpus"] for machine in there), sum(machine["gpus"] for machine in there)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Finding(
        SUBJECT,
        "ok",
        f"{address} is Ray {found['ray']} with Python {python}, as here: {_count(len(there), 'machine')}, "
        f"{gpus} GPUs ({found['gpus']:g} free), {cpus:g} CPUs ({found['cpus']:g} free)",
    )


def _places(settings: Settings, found: dict[str, Any]) -> Finding:
    """How many workers fit, by what Ray gives away."""
    gpus = gpus_each(settings.device, sum(machine["gpus"] for machine in found["machines"]))
    needs = f"{gpus} GPU and {settings.worker_cpus:g} CPU" if gpus else f"{settings.worker_cpus:g} CPU"
    places = sum(_fit(machine, gpus, settings.worker_cpus) for machine in found["machines"])
    fewest, most = settings.worker_range
    if places < fewest:
        detail = (
            f"{_count(places, 'worker')} of {needs} would find a place, --workers {settings.workers} asks for {fewest}"
        )
        advice = "add machines (ray start --address ...), or ask for less by --workers and --worker-cpus"
        return Finding("places", "warning", detail, f"{advice}; with Ray's autoscaler they are started when asked for")
    if found["gpus"] < gpus or found["cpus"] < settings.worker_cpus:
        detail = f"every place for {needs} is taken now, perhaps by a node that runs"
        return Finding("places", "warning", detail, "`ray status` on the head tells by whom")
    return Finding("places", "ok", f"{_count(min(places, most), 'worker')} of {needs} would find a place")


def _fit(machine: dict[str, Any], gpus: int, cpus: float) -> int:
    by_gpus = machine["gpus"] // gpus if gpus else sys.maxsize
    by_cpus = int(machine["cpus"] // cpus) if cpus else sys.maxsize
    return min(by_gpus, by_cpus, 10_000)


def _machines(settings: Settings, found: dict[str, Any]) -> list[Finding]:
    """Those on which a worker might be started."""
    gpus = gpus_each(settings.device, sum(machine["gpus"] for machine in found["machines"]))
    hosts = [machine for machine in found["machines"] if _fit(machine, gpus, settings.worker_cpus)]
    wrong = [finding for machine in hosts if (finding := _machine(machine, found["at"])) is not None]
    if wrong or not hosts:
        return wrong
    return [Finding("machines", "ok", f"all have fluxserve {VERSION} and reach this one at {found['at']}")]


def _machine(machine: dict[str, Any], at: str) -> Finding | None:
    """What is wrong with one."""
    answer, name = machine["answer"], machine["address"]
    if answer is None:
        return Finding("machine", "warning", f"{name} has not answered in time", "see Ray's logs there")
    if "failed" in answer:
        return Finding("machine", "broken", f"{name}: {answer['failed']}", f"install fluxserve {VERSION} there")
    name = f"{answer['host']} ({name})"
    if answer["version"] != VERSION:
        detail = f"{name} has fluxserve {answer['version']}, this machine {VERSION}"
        return Finding("machine", "broken", detail, "install the same version on both")
    if answer["unreached"] is not None:
        detail = f"{name} does not reach this machine at {at}: {answer['unreached']}"
        return Finding(
            "machine", "broken", detail, "workers connect to it: set --worker-host and --worker-port, open the firewall"
        )
    if abs(answer["ahead_s"]) > SKEW_S:
        detail = (
            f"the clock of {name} is {abs(answer['ahead_s']):.0f} s {'ahead' if answer['ahead_s'] > 0 else 'behind'}"
        )
        return Finding(
            "machine", "warning", detail, "set it by NTP: an hour off, its workers do not trust the node's certificate"
        )
    return None


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
