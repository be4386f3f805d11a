"""Training in several processes (torchrun): the same weights everywhere, gradients averaged after every backward.

On a shared CPU this also beats threads: two threads meet at every operation, two processes once a step.
"""

import os

import torch
import torch.distributed
from torch import nn


class Together:
    """The processes that `torchrun` started, or this one alone."""

    def __init__(self) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        if self.count > 1 and not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")

    def from_first(self, value: float) -> float:
        """The first process's value, so that all agree on progress and on when to stop."""
        if self.count == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        torch.distributed.broadcast(shared, 0)
        return float(shared)

    def average_gradients(self, module: nn.Module) -> None:
        """Replace every gradient by its mean over the processes; parameters unused this step count as zero."""
        if self.count == 1:
            return
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1).cpu() for p in parameters])
        torch.distributed.all_reduce(flat)
        flat /= self.count
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.device)
