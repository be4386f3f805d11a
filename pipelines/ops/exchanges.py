"""What the ranks hand to one another in one step, in the order that all of them keep, also one that fails."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from models.accelerator import DeviceLostError
from pipelines.ops.ranks import Ranks
from pipelines.ops.shares import Shares


@dataclass(frozen=True, slots=True)
class Form:
    """What of a transformer its exchanges depend on.

    Args:
        attentions: how often its tokens attend in one step.
        heads, head_dim: of attention. channels: of a velocity.
        dtype: of both, by name.
    """

    attentions: int
    heads: int
    head_dim: int
    channels: int
    dtype: str


@dataclass(frozen=True, slots=True)
class _Exchange:
    """Args: shape: of one row. given, taken: how many rows go to, and come from, each rank."""

    shape: tuple[int, ...]
    given: list[int]
    taken: list[int]


class Exchanges:
    """One rank's part in the exchanges of one step: two around each attention, and the velocities at the end.

    Nobody can be called back: where one rank stops, the others wait for it for ever. So one that fails makes the
    exchanges that are left with rows that mean nothing (`completed`), and says afterwards that it failed.
    """

    def __init__(self, ranks: Ranks, form: Form, shares: Shares, device: torch.device) -> None:
        self.shares = shares
        self.rank = ranks.index
        self._ranks = ranks
        self._device = device
        self._dtype: torch.dtype = getattr(torch, form.dtype)
        self._left = deque(_sequence(ranks.index, form, shares))

    def make(self, rows: Tensor) -> Tensor:
        """The next one: this rank's rows for each rank in turn -> what each has for this one."""
        exchange = self._left[0]
        received = rows.new_empty(sum(exchange.taken), *rows.shape[1:])
        self._left.popleft()
        self._ranks.exchange(rows, received, exchange.given, exchange.taken)
        return received

    @contextmanager
    def completed(self) -> Iterator[None]:
        """Around this rank's part of the step. Raises: what it raised, when the others have all that they wait for."""
        try:
            yield
        except DeviceLostError:
            raise
        except Exception as exc:
            traceback.clear_frames(exc.__traceback__)  # and with them what the step has computed: memory may be short
            self._abandon()
            raise

    def _abandon(self) -> None:
        try:
            while self._left:
                next_ = self._left[0]
                self.make(torch.empty(sum(next_.given), *next_.shape, dtype=self._dtype, device=self._device))
        except DeviceLostError:
            raise
        except Exception as exc:
            raise DeviceLostError(f"a step shared out over devices cannot be ended: {exc}") from exc


def _sequence(rank: int, form: Form, shares: Shares) -> list[_Exchange]:
    """Own tokens with all heads -> all tokens with some heads, and back, at each attention; images to the first."""
    count, totals, images = shares.count, shares.joint_totals, shares.image_totals
    own, heads, nothing = [totals[rank]] * count, form.heads // count, [0] * count
    to_heads = _Exchange((3, heads, form.head_dim), own, totals)
    to_tokens = _Exchange((heads * form.head_dim,), totals, own)
    to_first = _Exchange((form.channels,), [images[rank], *nothing[1:]], nothing if rank else images)
    return [*[to_heads, to_tokens] * form.attentions, to_first]
