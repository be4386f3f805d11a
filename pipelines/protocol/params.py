"""What one generation asks for: plain, validated values that the node builds and a worker runs. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, TypeVar

from pipelines.protocol.conditions import (
    Adapter,
    Coarse,
    Condition,
    Control,
    ControlNet,
    ImageToImage,
    Inpaint,
    Redux,
    Refine,
    check_conditions,
    condition_from_dict,
    condition_to_dict,
    kept_steps,
)

C = TypeVar("C", bound=Condition)

MAX_SIDE = 14142
"""Largest side in pixels that fal's shared size type accepts; models set lower limits."""

ACCELERATIONS = ("none", "regular", "high", "max")
"""fal's levels, from exact to fastest, and one more of ours."""

DEPTH_ESTIMATOR: Final = "depth-estimator"
"""The variant of checkpoints that tell how near each pixel of a picture is."""

_SEEDS = range(-(2**63), 2**64)
"""What torch.Generator.manual_seed takes."""


def wrap_seed(seed: int) -> int:
    """The seed itself where torch takes it; any other, so that no seed is refused, counted on from the other end."""
    return seed if seed in _SEEDS else seed % 2**64


@dataclass(frozen=True, slots=True)
class GenerationParams:
    """One request for pictures, fully decided: no defaults are left to the worker.

    Args:
        model: name under which the worker holds the checkpoint (see `models.registry`).
        prompt: the text; may be empty.
        width, height: pixels of the delivered picture, 1..MAX_SIDE. The engine rounds up to what the model
            can draw and crops, so any size is legal here.
        num_inference_steps: denoising steps of a whole schedule, at least 1; `num_steps` are drawn.
        guidance_scale: how tightly the model follows the prompt; distilled models may have none.
        seed: image k of the request is drawn with `seed + k`, wrapped where torch takes no larger one.
        num_images: pictures wanted, at least 1.
        max_sequence_length: T5 tokens of the prompt, padded.
        safety_threshold: a picture whose unsafe probability reaches this is blacked out, in (0, 1];
            None switches the checker off.
        acceleration: "none" (exact), "regular", "high" or "max"; what changes pixels is never on silently.
        preview_every: send a small preview every so many steps; 0 sends none.
        conditions: what it brings besides the prompt, at most one of a kind (ControlNets may be several).
        adapters: LoRAs that its steps take along.
        negative_prompt: what models with real guidance lead away from; others pass over it.

    Raises: ValueError with the limit in the message.
    """

    model: str
    prompt: str
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    seed: int
    num_images: int = 1
    max_sequence_length: int = 512
    safety_threshold: float | None = None
    acceleration: str = "none"
    preview_every: int = 0
    conditions: tuple[Condition, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    negative_prompt: str = ""

    def __post_init__(self) -> None:
        for side, value in (("width", self.width), ("height", self.height)):
            if not 1 <= value <= MAX_SIDE:
                raise ValueError(f"{side} must be between 1 and {MAX_SIDE} pixels, not {value}")
        if self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, not {self.num_inference_steps}")
        if self.num_images < 1:
            raise ValueError(f"num_images must be at least 1, not {self.num_images}")
        if self.seed not in _SEEDS:
            raise ValueError(f"seed must be between {_SEEDS.start} and {_SEEDS.stop - 1}, not {self.seed}")
        if self.acceleration not in ACCELERATIONS:
            raise ValueError(f"acceleration must be one of {', '.join(ACCELERATIONS)}, not {self.acceleration}")
        if self.safety_threshold is not None and not 0 < self.safety_threshold <= 1:
            raise ValueError(f"safety_threshold must lie in (0, 1], not {self.safety_threshold}")
        check_conditions(self.conditions)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of every picture, in order."""
        return tuple(wrap_seed(self.seed + k) for k in range(self.num_images))

    @property
    def num_steps(self) -> int:
        """Denoising steps of every picture: `strength` skips the first ones, `Refine` adds some."""
        return sum(self.phases)

    @property
    def phases(self) -> tuple[int, ...]:
        """Steps of each phase: one, or with `Refine` or `Coarse` two."""
        start = self.find(ImageToImage) or self.find(Inpaint)
        refine, coarse = self.find(Refine), self.find(Coarse)
        steps = self.num_inference_steps
        if coarse is not None and (small := int(steps * coarse.share)):
            return small, steps - small
        first = steps if start is None else kept_steps(steps, start.strength, start.rounds_down)
        return (first,) if refine is None else (first, kept_steps(steps, refine.strength))

    @property
    def num_pictures(self) -> int:
        """Pictures it needs beside it: one more than the largest index any condition names."""
        return max((index + 1 for condition in self.conditions for index in condition.pictures), default=0)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the checkpoints that it takes: its own, and those that its conditions call for; for an estimator
        of depth, of which any will do, the variant."""
        redux, nets = self.find(Redux), [each for each in self.conditions if isinstance(each, ControlNet)]
        control = self.find(Control)
        needs_depth = control is not None and control.control == "depth" and not control.is_prepared
        needs_depth = needs_depth or any(net.control == "depth" for net in nets)
        named = [self.model, *(() if redux is None else (redux.encoder,)), *(net.name for net in nets)]
        return (*named, DEPTH_ESTIMATOR) if needs_depth else tuple(named)

    def find(self, kind: type[C]) -> C | None:
        """Its condition of this kind."""
        return next((condition for condition in self.conditions if isinstance(condition, kind)), None)

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON or msgpack."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {
            "conditions": [condition_to_dict(condition) for condition in self.conditions],
            "adapters": [{"file": adapter.file, "scale": adapter.scale} for adapter in self.adapters],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GenerationParams:
        """The inverse of `to_dict`; unknown keys are dropped and missing ones take their defaults, so that a row of
        an older store still loads. Raises: ValueError, TypeError."""
        known = {f.name for f in fields(cls)}
        plain = {key: value for key, value in values.items() if key in known}
        plain["conditions"] = tuple(condition_from_dict(each) for each in plain.get("conditions", ()))
        plain["adapters"] = tuple(Adapter(**each) for each in plain.get("adapters", ()))
        return cls(**plain)
