"""A family's packed forward over several devices: the first leads, the others compute their share of every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from models.accelerator import Accelerator, DeviceLostError
from models.errors import LoadError
from pipelines.engine.request import RequestError
from pipelines.families.layout import PackLayout
from pipelines.ops.compute import Compute
from pipelines.ops.exchanges import Exchanges, Form
from pipelines.ops.ranks import Ranks
from pipelines.ops.shared_attention import attention_by_heads, gathered_image
from pipelines.ops.shares import Shares
from pipelines.protocol.frames import Frame, Share, Shared

LEAST_RECORDED = 2048
"""Tokens from which a step is split where one device could replay it: launched anew on each of two, a smaller one takes
as long (docs/speed.md)."""

Forward = Callable[[PackLayout, Tensor, Tensor, Tensor, Compute], Tensor]
"""(layout, latents, text, modulation, compute) -> velocity of every picture."""


@dataclass(frozen=True, slots=True)
class Team:
    """The ranks as a checkpoint meets them.

    Args:
        tell: hands the others a frame; does nothing where this process is one of them.
        settle: returns once the others have loaded what they were told to.
        hear: how each of the others fared with the last Share.
    """

    ranks: Ranks
    tell: Callable[[Frame], None] = lambda frame: None
    settle: Callable[[], None] = lambda: None
    hear: Callable[[], Sequence[Shared]] = tuple


def form_of(transformer: Any, dtype: torch.dtype) -> Form:
    """Of a FLUX.1 or FLUX.2 transformer, whose every block attends once."""
    config = transformer.config
    return Form(
        len(transformer.transformer_blocks) + len(transformer.single_transformer_blocks),
        int(config.num_attention_heads),
        int(config.attention_head_dim),
        int(transformer.proj_out.out_features),
        str(dtype).removeprefix("torch."),
    )


class Split:
    """One transformer's forward, whole or shared out.

    Args: is_recorded: whether small steps are replayed on one device.
    """

    def __init__(self, form: Form, compute: Compute, forward: Forward, is_recorded: bool) -> None:
        self._form = form
        self._compute = compute
        self.forward = forward
        self._least = LEAST_RECORDED if is_recorded else 0
        self._team: Team | None = None
        self.group = ""
        """The name of these weights among those that are shared out."""

    def join(self, team: Team, group: str) -> None:
        """Share steps out from now on. Args: group: the name of these weights. Raises: LoadError."""
        count = team.ranks.count
        heads = self._form.heads
        if heads % count:
            fitting = [str(n) for n in (2, 4, 8) if heads % n == 0]
            raise LoadError(
                f"model {group} has {heads} heads, which {count} devices cannot share evenly; "
                f"use --parallel {' or '.join(fitting) or 1}."
            )
        self._team, self.group = team, group

    def takes(self, layout: PackLayout) -> bool:
        """Whether a step of this layout is shared out. One with adapters is not."""
        if self._team is None or layout.uses or sum(layout.joint_lengths) < self._least:
            return False
        return Shares(layout.text_lengths, layout.image_lengths, self._team.ranks.count).is_whole

    def lead(self, layout: PackLayout, latents: Tensor, text: Tensor, modulation: Tensor) -> Tensor:
        """The velocity of every picture, by all ranks.

        Raises: what one of them failed with, once all are through with the step and ready for the next; DeviceLostError
            where they cannot be.
        """
        team = self._team
        assert team is not None
        rope = torch.view_as_real(layout.rope)
        tensors = [tensor.contiguous() for tensor in (latents, text, modulation, rope)]
        shapes = [(list(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for tensor in tensors]
        lengths = list(layout.text_lengths), list(layout.image_lengths)
        team.tell(Share(self.group, *lengths, shapes, asdict(self._form)))
        exchanges = _begin(team.ranks, self._form, layout, tensors)
        try:
            with exchanges.completed():
                velocity = self.compute_share(exchanges, layout, tensors)
        except DeviceLostError:
            raise
        except Exception:
            team.hear()
            raise
        _check(team.hear())
        return velocity

    def compute_share(self, exchanges: Exchanges, layout: PackLayout, tensors: Sequence[Tensor]) -> Tensor:
        """One rank's part of a step. Args: tensors: latents, text, modulation, rotations."""
        latents, text, modulation, _ = tensors
        shares, rank = exchanges.shares, exchanges.rank
        own = PackLayout(shares.text(rank), shares.image(rank), shares.joint_of(layout.rope, rank))
        compute = replace(self._compute, attend=attention_by_heads(self._compute.attend, exchanges))
        velocity = self.forward(own, shares.image_of(latents, rank), shares.text_of(text, rank), modulation, compute)
        return gathered_image(velocity, exchanges)


def _begin(ranks: Ranks, form: Form, layout: PackLayout, tensors: Sequence[Tensor]) -> Exchanges:
    """The first's tensors for all, and what follows."""
    for tensor in tensors:
        ranks.share(tensor)
    return Exchanges(ranks, form, Shares(layout.text_lengths, layout.image_lengths, ranks.count), tensors[0].device)


def _check(others: Sequence[Shared]) -> None:
    """Raises: for those that failed."""
    failed = [shared for shared in others if shared.problem]
    if any(shared.is_memory for shared in failed):
        raise MemoryError(failed[0].problem)
    if failed:
        raise RequestError(failed[0].problem)


@torch.inference_mode()
def follow(ranks: Ranks, share: Share, accelerator: Accelerator, split_of: Callable[[str], Split]) -> Shared:
    """Do this rank's part of a step that the first leads, as far as it can.

    Args: split_of: the weights of a group, loaded if they have to be.
    Returns: how it went. Raises: DeviceLostError, and whatever else says that the device is beyond use.
    """
    device = accelerator.device
    tensors = [torch.empty(shape, dtype=getattr(torch, name), device=device) for shape, name in share.tensors]
    layout = PackLayout(tuple(share.text_lengths), tuple(share.image_lengths), torch.view_as_complex(tensors[3]))
    exchanges = _begin(ranks, Form(**share.form), layout, tensors)
    try:
        with exchanges.completed():
            split_of(share.group).compute_share(exchanges, layout, tensors)
    except Exception as exc:
        if accelerator.is_fatal(exc):
            raise
        accelerator.release_cached_memory()
        problem = (
            str(exc) if isinstance(exc, RequestError) else f"the model failed on this request ({type(exc).__name__})"
        )
        return Shared(problem, accelerator.is_out_of_memory(exc))
    return Shared()


@runtime_checkable
class Splittable(Protocol):
    """A runner whose steps can be shared out."""

    @property
    def split(self) -> Split: ...
