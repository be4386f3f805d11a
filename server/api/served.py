"""Which checkpoint answers for an endpoint, and which stand beside it: the one rule, for every caller.

The best of the endpoint's variants that is served or there on demand answers; all its variants can do what it asks
for, so nothing else ever does. Of several that were distilled to few steps it is the one for the request's number.
What is missing is named by the flag that adds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from models.registry import REGISTRY, UNNAMED, ModelSpec, Variant, own_estimator, siblings
from pipelines.protocol.params import DEPTH_ESTIMATOR
from server.http.errors import PlainError


class NotServedError(PlainError):
    """No checkpoint here can do it; the answer is a 404 that names the flag to add, which is also `missing`."""

    def __init__(self, flag: str) -> None:
        super().__init__(404, f"No checkpoint of this server can do that: it must be started with {_either(flag)}")
        self.missing = flag


@dataclass(frozen=True, slots=True)
class Served:
    """The checkpoints of one server.

    Args: specs: the operator's, in his order and at least one. offers: those that he lets requests have loaded.
    Attributes: on_demand: what the first request for it loads: `offers`, and what all of them bring along.
    """

    specs: Sequence[ModelSpec]
    offers: tuple[ModelSpec, ...] = ()
    on_demand: tuple[ModelSpec, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "on_demand", (*self.offers, *siblings((*self.specs, *self.offers))))

    @property
    def all(self) -> tuple[ModelSpec, ...]:
        """Every checkpoint that a request may use."""
        return (*self.specs, *self.on_demand)

    def model_for(self, variants: Sequence[Variant], steps: int | None) -> ModelSpec:
        """The checkpoint that draws, the best by the order of `variants`.

        Of one variant the first draws, unless some were distilled for one number of steps: then the one for `steps`
        (None if they do not matter), else one that draws in any, else the nearest. Raises: NotServedError.
        """
        found = self._drawing(variants)
        return found[0] if steps is None else min(found, key=lambda spec: _misfit(spec, steps))

    def by_steps(self, variants: Sequence[Variant]) -> dict[int, ModelSpec]:
        """Those that `model_for` draws exactly so many steps with, because they were distilled for them; fewest first.

        Raises: NotServedError.
        """
        found = reversed(self._drawing(variants))
        return dict(sorted({spec.distilled_steps: spec for spec in found if spec.distilled_steps is not None}.items()))

    def _drawing(self, variants: Sequence[Variant]) -> list[ModelSpec]:
        """Those of the best variant, the first to be preferred; at least one. Raises: NotServedError."""
        for variant in variants:
            found = [spec for spec in self.all if spec.variant == variant]
            if found:
                # An embedded one never stands in for real weights, whatever number of steps is asked for.
                return [spec for spec in found if _are_kin(found[0], spec)]
        raise _missing(variants[0])

    def answers(self, variants: Sequence[Variant], beside: Variant | None = None) -> bool:
        """Whether one of them is here, and what has to stand beside it."""
        try:
            spec = self.model_for(variants, None)
            if beside is not None:
                self.beside(spec, beside)
        except NotServedError:
            return False
        return True

    def beside(self, spec: ModelSpec, variant: Variant) -> ModelSpec:
        """The checkpoint of that variant whose work `spec` understands: of depth any, which may be `spec` itself.

        Raises: NotServedError.
        """
        if variant == DEPTH_ESTIMATOR:
            found = self._estimator
        else:
            found = next((other for other in self.all if other.variant == variant and _are_kin(spec, other)), None)
        if found is None:
            raise _missing(variant)
        return found

    @property
    def _estimator(self) -> ModelSpec | None:
        """What tells the depth of pictures: a checkpoint for that, or else the one that brings it in its folder."""
        named = next((spec for spec in self.all if spec.variant == DEPTH_ESTIMATOR), None)
        return named or next((spec for spec in self.all if own_estimator(spec) is not None), None)

    def named(self, spec: ModelSpec, variant: Variant, name: str) -> ModelSpec | None:
        """The checkpoint of that variant with this name or source, beside `spec`; None if it is not here."""
        candidates = [other for other in self.all if other.variant == variant and _are_kin(spec, other)]
        return next((other for other in candidates if name in (other.name, other.source)), None)


def _misfit(spec: ModelSpec, steps: int) -> float:
    """How badly a checkpoint suits a number of steps: not at all if it is for it, little if it draws in any."""
    return 0.5 if spec.distilled_steps is None else abs(spec.distilled_steps - steps)


def _are_kin(spec: ModelSpec, other: ModelSpec) -> bool:
    """Whether both are of the embedded model's family, or neither: their text and picture tokens differ in width."""
    return spec.is_embedded == other.is_embedded


def _either(flag: str) -> str:
    """The same flag, or the one that spares the memory until then."""
    name = flag.removeprefix("--model ")
    return flag if " " in name else f"{flag}, or with --models-on-demand {name} to have requests load it"


def _missing(variant: Variant) -> NotServedError:
    published = (spec for spec in REGISTRY.values() if not spec.is_embedded and not spec.source.startswith("random:"))
    known = next((spec.name for spec in published if spec.variant == variant), UNNAMED.get(variant))
    return NotServedError(f"--model {known}" if known else f"--model with a folder of a {variant} checkpoint")
