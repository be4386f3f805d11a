"""Which of the loaded checkpoints answers for an endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from models.registry import ModelSpec


@dataclass(frozen=True, slots=True)
class Served:
    """The checkpoints of one server, in the operator's order; at least one."""

    specs: Sequence[ModelSpec]

    def model_for(self, variants: Sequence[str]) -> ModelSpec:
        """The best by the order of `variants`, else the first."""
        return next((spec for variant in variants for spec in self.specs if spec.variant == variant), self.specs[0])
