"""Muon for matrices and convolutions, AdamW for the rest, one cosine for both, and an exponential moving average."""

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from models.shapes.precision import multiplies_bfloat16


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz, batched over parameters of one shape.

    Convolutions count as matrices (out, in * kh * kw). Source: Keller Jordan, "Muon", 2024.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update; `closure` is accepted for the base class's sake and not called."""
        for group in self.param_groups:
            same_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    same_shape[parameter.shape].append(parameter)
            for parameters in same_shape.values():
                self._step(parameters, group)

    def _step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        buffers = []
        for parameter, gradient in zip(parameters, gradients, strict=True):
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(gradient)
            buffers.append(state["momentum"])
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        nesterov = torch._foreach_lerp(gradients, buffers, group["momentum"])
        update = _orthogonal(torch.stack([n.flatten(1) for n in nesterov]))
        rows, columns = update.shape[1:]
        update = update * (-group["lr"] * max(1.0, rows / columns) ** 0.5)
        if group["decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["decay"])
        torch._foreach_add_(parameters, list(update.view(-1, *parameters[0].shape)))


def _orthogonal(batch: Tensor, steps: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrices, roughly: (N, rows, columns) -> the same."""
    tall = batch.shape[1] > batch.shape[2]
    x = batch.mT if tall else batch
    if multiplies_bfloat16(x.device):
        x = x.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    result: Tensor = (x.mT if tall else x).to(batch.dtype)
    return result


class Optimisers:
    """Muon and AdamW stepped together under one schedule.

    `muon` receives every parameter with two or more dimensions whose name has none of the words in `keep_adam`;
    `decay` is Muon's.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        lr_muon: float,
        lr_adam: float,
        keep_adam: tuple[str, ...] = (),
        decay: float = 0.0,
    ) -> None:
        muon: list[nn.Parameter] = []
        adam: list[nn.Parameter] = []
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                is_matrix = parameter.ndim >= 2 and not any(word in name for word in keep_adam)
                (muon if is_matrix else adam).append(parameter)
        self._peaks = (lr_muon, lr_adam)
        self._parameters = muon + adam
        device = self._parameters[0].device
        # On a GPU the learning rates lie there too, so that a recorded step can be told new ones.
        self._rates = [torch.tensor(peak, device=device) for peak in self._peaks] if device.type == "cuda" else None
        on_gpu = {"fused": True, "capturable": True} if self._rates else {}
        self.each: list[torch.optim.Optimizer] = [
            Muon(muon, lr=lr_muon, decay=decay),
            torch.optim.AdamW(adam, lr=lr_adam, betas=(0.9, 0.99), weight_decay=0.0, **on_gpu),
        ]
        self._share_rates()

    def step(self, scale: float, *, clip: float = 1.0) -> float:
        """Update with learning rates times `scale`, clear gradients, return their norm before clipping.

        A step whose norm is not finite changes nothing.
        """
        self.set_scale(scale)
        norm = float(nn.utils.clip_grad_norm_(self._parameters, clip))
        if math.isfinite(norm):
            self._apply()
        self._clear()
        return norm

    def set_scale(self, scale: float) -> None:
        """Set the learning rates to `scale` times their peaks."""
        for i, (optimiser, peak) in enumerate(zip(self.each, self._peaks, strict=True)):
            if self._rates:
                self._rates[i].fill_(peak * scale)
            else:
                for group in optimiser.param_groups:
                    group["lr"] = peak * scale

    def update(self, *, clip: float = 1.0) -> None:
        """What `step` does at the learning rates that are set, without waiting for the device to tell the norm.

        Gradients that are not finite count as zero.
        """
        for parameter in self._parameters:
            if parameter.grad is not None:
                torch.nan_to_num_(parameter.grad, nan=0.0, posinf=0.0, neginf=0.0)
        nn.utils.clip_grad_norm_(self._parameters, clip)
        self._apply()
        self._clear()

    def _apply(self) -> None:
        for optimiser in self.each:
            optimiser.step()

    def _clear(self) -> None:
        for optimiser in self.each:
            optimiser.zero_grad(set_to_none=True)

    def _share_rates(self) -> None:
        for optimiser, rate in zip(self.each, self._rates or (), strict=False):
            for group in optimiser.param_groups:
                group["lr"] = rate

    def state_dict(self) -> list[dict[str, Any]]:
        """The states of both, in order."""
        return [optimiser.state_dict() for optimiser in self.each]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Restore what `state_dict` returned."""
        for optimiser, state in zip(self.each, states, strict=True):
            optimiser.load_state_dict(state)
        self._share_rates()


def warm_cosine(done: float, *, warm: float = 0.02, floor: float = 0.02) -> float:
    """Learning-rate scale at the fraction `done` of a run: linear warm-up, then half a cosine down to `floor`."""
    if done < warm:
        return max(done / warm, 0.02)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min((done - warm) / (1 - warm), 1.0)))


Module = TypeVar("Module", bound=nn.Module)


class Average(Generic[Module]):
    """An exponential moving average of a module's parameters, warmed up so that it forgets the start."""

    def __init__(self, module: Module, decay: float) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self._decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, module: Module) -> None:
        """Move towards `module`."""
        self.updates += 1
        weight = 1 - min(self._decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), weight)
