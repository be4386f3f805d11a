"""Whether a cluster may be used at all: Ray is there, and its head is not where everybody can reach it."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import socket
from collections.abc import Callable, Mapping


def unusable(
    address: str,
    environ: Mapping[str, str] = os.environ,
    is_installed: Callable[[str], object] = importlib.util.find_spec,
) -> str | None:
    """Why this address of a cluster cannot be used, as a sentence; None where it can. Imports nothing of Ray.

    Ray runs whatever those who reach its ports send (CVE-2023-48022, "ShadowRay"), unless it asks for a token.
    """
    if address == "auto":
        address = environ.get("RAY_ADDRESS") or address  # as Ray reads it
    needed = ("ray", "grpc") if address.startswith("ray://") else ("ray",)
    if missing := next((name for name in needed if is_installed(name) is None), None):
        return f"the package {missing} is not installed (pip install -r requirements-ray.lock)"
    if environ.get("RAY_AUTH_MODE") == "token":
        return None
    if public := next((found for found in _addresses(address) if ipaddress.ip_address(found).is_global), None):
        return (
            f"{public} is a public address, and whoever reaches a Ray cluster runs programs on all its machines: "
            "use a private network, or let Ray ask for a token (RAY_AUTH_MODE=token)"
        )
    return None


def unreachable(address: str, what_ray_says: str) -> str:
    """That nothing came of connecting to this address, as a sentence that says where to look."""
    is_silence = any(sign in what_ray_says.lower() for sign in _SILENCE)
    why = "nobody answers there" if is_silence else what_ray_says.rstrip(".")
    return f"Ray at {address} cannot be reached: {why}; {_where_to_look(address)}"


_SILENCE = ("timed out", "timedout", "timeout", "deadline_exceeded", "unavailable", "failed to connect", "refused")
"""Of what libraries below Ray say when no connection came about, in any case."""


def _where_to_look(address: str) -> str:
    if address == "auto":
        return "start Ray on this machine (`ray start`), or name a head with --cluster or RAY_ADDRESS"
    if address.startswith("ray://"):
        return (
            "look whether the head runs (`ray status` there), and whether the port of its client server is open to "
            "this machine (10001, or what `ray start --ray-client-server-port` said; not 6379)"
        )
    return "look whether the head runs (`ray status` there), and whether this machine joined it (`ray start --address`)"


def _addresses(address: str) -> list[str]:
    """What the head's name means; nothing for `auto` and for names that are not known here (Ray will say so)."""
    host = address.removeprefix("ray://").rpartition(":")[0].strip("[]")
    try:
        found = socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP) if host else []
    except OSError:
        return []
    return [str(entry[4][0]).partition("%")[0] for entry in found]
