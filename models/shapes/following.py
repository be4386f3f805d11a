"""A student's hidden states follow its teacher's, so that it need not find out from velocities alone what to think.

Source: Yu et al., "Representation Alignment for Generation", 2024, with the teacher's own states for an encoder's.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

WEIGHT = 0.25  # of how far the states are apart, one minus a cosine, beside the loss of velocities
Pair = tuple[nn.Module, nn.Module]  # a block of the student and the block of the teacher whose states it follows


@contextmanager
def overheard(blocks: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """The image's hidden states (B, tokens, width) that each block puts out, in the order in which they run."""
    heard: list[Tensor] = []

    def hear(_block: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        states = output if isinstance(output, Tensor) else output[-1]  # behind the text's, where both are told
        heard.append(states.flatten(2).mT if states.ndim == 4 else states)

    handles = [block.register_forward_hook(hear) for block in blocks]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


class Followed(nn.Module):
    """Reads from a student's states what its teacher's are; learned beside the student and not stored."""

    def __init__(self, width: int, pairs: int) -> None:
        super().__init__()
        self.readers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
            for _ in range(pairs)
        )

    def apart(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
        """How far the states (B, tokens, width) of each pair are apart, on average: 0 to 2, a scalar."""
        far = []
        for reader, own, told in zip(self.readers, students, teachers, strict=True):
            told = told.float()
            spread = told.std((0, 1), keepdim=True) + 1e-4
            told = (told - told.mean((0, 1), keepdim=True)) / spread  # else what is the same everywhere would outshine
            far.append(1 - cosine_similarity(reader(own).float(), told, dim=2).mean())
        return torch.stack(far).mean()
