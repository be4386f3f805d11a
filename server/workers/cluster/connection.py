"""A process' connection to Ray, which it imports here: what the cluster has, and why there is none, in a sentence."""

from __future__ import annotations

import importlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from server.workers.cluster.address import unusable

NAMESPACE = "fluxserve"


@dataclass(frozen=True, slots=True)
class Machine:
    """One that is alive. Args: id: Ray's. address: of its raylet. cpus, gpus: that Ray gives away there in all."""

    id: str
    address: str
    cpus: float
    gpus: int


class HeadRefusedError(Exception):
    """Ray has found a head that must not be used."""


def connect(address: str) -> Any:
    """The module `ray`, connected. Args: address: what ray.init takes.

    Raises: HeadRefusedError where `auto` found what `unusable` refuses, which is known only now; whatever Ray does,
        which is much.
    """
    ray = importlib.import_module("ray")
    ray.init(address=address, namespace=NAMESPACE, logging_level="WARNING")
    if address == "auto" and (problem := unusable(ray.get_runtime_context().gcs_address)):
        raise HeadRefusedError(problem)
    return ray


def machines(ray: Any) -> list[Machine]:
    """Those that are alive now."""
    return [
        Machine(
            node["NodeID"],
            node["NodeManagerAddress"],
            node["Resources"].get("CPU", 0.0),
            int(node["Resources"].get("GPU", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def sentence(error: BaseException) -> str:
    """The end of what Ray says, which is where the cause is, without its traceback; all of it where versions differ."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    begin = next((number for number, line in enumerate(lines) if "ersion mismatch" in line), len(lines) - 1)
    return (" ".join(lines[begin:]) if lines else type(error).__name__)[:300]


def gpus_each(device: str, there: int) -> int:
    """That each worker asks for. Args: device: `auto`, cuda or cpu. there: of the whole cluster."""
    return int(device.startswith("cuda") or (device == "auto" and there > 0))


def address_towards(addresses: Sequence[str]) -> str:
    """Our address on the way to the first of the cluster's machines that is not this one. Sends nothing."""
    other = next((address for address in addresses if not address.startswith("127.")), "127.0.0.1")
    with socket.socket(socket.AF_INET6 if ":" in other else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((other, 9))
        return str(probe.getsockname()[0])
