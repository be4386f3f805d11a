"""Several processes of one machine, a device each, that compute every step together: what they hand to one another."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from models.accelerator import DeviceLostError

_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
_JOIN = timedelta(minutes=30)
"""A process joins after it has imported torch, and answers a step after it has loaded the model."""


class Ranks:
    """This process among its like. Every call is made by all of them, in the same order.

    What a call raises is a DeviceLostError: from then on the others wait for something else than this process does.

    Args:
        index, count: which of how many; the first leads.
        store: a descriptor that all have inherited (see `rendezvous`), through which they find one another.
    """

    def __init__(self, index: int, count: int, store: int, device: torch.device) -> None:
        self.index = index
        self.count = count
        # Nothing but this machine takes part, so nothing else may reach the ports that the libraries open.
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = _LOOPBACK
        is_cuda = device.type == "cuda"
        dist.init_process_group(
            "nccl" if is_cuda else "gloo",
            store=dist.FileStore(f"/proc/self/fd/{store}", count),  # type: ignore[attr-defined]
            rank=index,
            world_size=count,
            timeout=_JOIN,
            device_id=device if is_cuda else None,
        )

    def share(self, tensor: Tensor) -> None:
        """The first's tensor for all: the others' are overwritten. It must be contiguous."""
        with _together():
            dist.broadcast(tensor, 0)

    def exchange(self, rows: Tensor, received: Tensor, given: Sequence[int], taken: Sequence[int]) -> None:
        """`rows`, (sum(given), ...), as many for each rank in turn, into `received`, (sum(taken), ...), likewise."""
        with _together():
            dist.all_to_all_single(received, rows, list(taken), list(given))


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except Exception as exc:
        raise DeviceLostError(f"a step shared out over devices failed: {type(exc).__name__}: {exc}") from exc


def rendezvous() -> int:
    """A descriptor for `Ranks`, to be inherited by all: a file in memory that has no name and ends with them."""
    return os.memfd_create("ranks", 0)
