"""Every endpoint of fal's FLUX catalogue with the checkpoints that answer for it, or why none does."""

from __future__ import annotations

from collections.abc import Iterator

from models.registry import REGISTRY, UNNAMED, ModelSpec, Variant
from pipelines.protocol.params import DEPTH_ESTIMATOR
from server.api.endpoints import ENDPOINTS, Endpoint
from server.api.schemas.control import SHOWS_DEPTH
from server.api.served import NotServedError, Served
from server.api.unserved import UNSERVED

_DEPTH: tuple[Variant, ...] = ("depth",)
_SHOWN = f"`{SHOWS_DEPTH}: false`"

Row = tuple[str, str]
"""An endpoint's id, and the checkpoints or the reason in words."""


def rows(served: Served) -> Iterator[Row]:
    """As one server answers."""
    for row in ENDPOINTS.values():
        yield row.id, _answered(row, served)
    for name, reason in UNSERVED.items():
        yield name, f"not served: {reason}"


def markdown() -> str:
    """As any server may answer: the page docs/endpoints.md."""
    lines = [
        "# Endpoints",
        "",
        "Every endpoint of fal's FLUX catalogue, made by `fluxserve models --endpoints --markdown`. The checkpoint",
        "after *or* stands in where the first is not served; an embedded one answers where no `--model` is named and",
        "its weights are in `models/shapes/`. SDXL-Lightning has a file for each number of steps; of those that are",
        "served the one for the request's number answers, or else the nearest. What one server answers:",
        "`fluxserve models --endpoints` and `GET /v1/models`.",
        "",
        "| endpoint | answered by | embedded |",
        "|---|---|---|",
    ]
    lines += [f"| `{row.id}` | {_known(row, False)} | {_known(row, True)} |" for row in ENDPOINTS.values()]
    lines += ["", "Not served, and answered with 404 and the reason:", "", "| endpoint | why |", "|---|---|"]
    lines += [f"| `{name}` | {reason} |" for name, reason in UNSERVED.items()]
    return "\n".join(lines) + "\n"


def _answered(row: Endpoint, served: Served) -> str:
    try:
        spec, by_steps = served.model_for(row.variants, row.usual_steps), served.by_steps(row.variants)
        beside = None if row.beside is None else served.beside(spec, row.beside)
    except NotServedError as exc:
        return f"missing: {exc.missing}"
    on_demand = " (loaded on demand)" if spec in served.on_demand else ""
    stands = "" if beside is None or beside == spec else f" with {beside.name}"
    depth = _depth(spec, served) if _takes_depth(row) else ""
    others = [f"in {steps} steps {each.name}" for steps, each in by_steps.items() if each is not spec]
    return ", ".join([f"{spec.name}{stands}{depth}{on_demand}", *others])


def _takes_depth(row: Endpoint) -> bool:
    """Whether the depth of a picture may be sent instead of the picture, which then nothing has to tell."""
    return row.variants == _DEPTH and SHOWS_DEPTH in row.schema.model_fields


def _depth(spec: ModelSpec, served: Served) -> str:
    """What tells the depth of pictures that do not show it already."""
    try:
        estimator = served.beside(spec, DEPTH_ESTIMATOR)
    except NotServedError as exc:
        return f", without {exc.missing} only by {_SHOWN}"
    return "" if estimator == spec else f" with {estimator.name}"


def _known(row: Endpoint, is_embedded: bool) -> str:
    """The checkpoints of the registry that may answer, best first."""
    drawing = [name for variant in row.variants for name in _names(variant, is_embedded)]
    drawing += [UNNAMED[variant] for variant in row.variants if variant in UNNAMED and not is_embedded]
    beside = _names(row.beside, is_embedded)[:1] if row.beside else []
    if _takes_depth(row) and not is_embedded:  # the embedded one brings its estimator along
        beside = [f"{_names(DEPTH_ESTIMATOR, is_embedded)[0]} (or {_SHOWN})"]
    return " with ".join([" or ".join(drawing), *beside])


def _names(variant: Variant, is_embedded: bool) -> list[str]:
    return [
        spec.name
        for spec in REGISTRY.values()
        if spec.variant == variant and spec.is_embedded == is_embedded and not spec.source.startswith("random:")
    ]
