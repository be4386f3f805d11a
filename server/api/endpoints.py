"""The table of fal endpoints: id -> input schema and the checkpoints that may answer for it."""

from __future__ import annotations

from dataclasses import dataclass

from models.registry import Variant
from server.api.paths import app_root, endpoint_id
from server.api.schemas import flux
from server.http.errors import PlainError

_DEV: tuple[Variant, ...] = ("dev", "srpo", "krea", "schnell")
_KREA: tuple[Variant, ...] = ("krea", "dev", "srpo", "schnell")
_SRPO: tuple[Variant, ...] = ("srpo", "dev", "krea", "schnell")
_SCHNELL: tuple[Variant, ...] = ("schnell", "dev", "srpo", "krea")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One row.

    Args:
        id: full endpoint id as fal spells it.
        schema: what its input must be.
        variants: checkpoints that may serve it, best first; a substitute is named in `/v1/models`.
        summary: one line for the catalogue.
    """

    id: str
    schema: type[flux.TextToImage]
    variants: tuple[Variant, ...]
    summary: str


_ROWS = (
    Endpoint("fal-ai/flux-pro", flux.FluxPro, _DEV, "FLUX.1 [pro], answered by open weights"),
    Endpoint("fal-ai/flux-pro/new", flux.FluxPro, _DEV, "FLUX.1 [pro], newer revision, answered by open weights"),
    Endpoint("fal-ai/flux-pro/v1.1", flux.FluxProPlus, _DEV, "FLUX1.1 [pro], answered by open weights"),
    Endpoint("fal-ai/flux-pro/v1.1-ultra", flux.FluxProUltra, _DEV, "FLUX1.1 [pro] ultra: about 4 megapixels"),
    Endpoint("fal-ai/flux-pro/kontext/text-to-image", flux.KontextText, _DEV, "Kontext [pro] without a picture"),
    Endpoint("fal-ai/flux-pro/kontext/max/text-to-image", flux.KontextText, _DEV, "Kontext [max] without a picture"),
    Endpoint("fal-ai/flux/dev", flux.FluxDev, _DEV, "FLUX.1 [dev]"),
    Endpoint("fal-ai/flux/schnell", flux.FluxSchnell, _SCHNELL, "FLUX.1 [schnell]: 1 to 12 steps"),
    Endpoint("fal-ai/flux/krea", flux.FluxKrea, _KREA, "FLUX.1 Krea [dev]"),
    Endpoint("fal-ai/flux/srpo", flux.FluxKrea, _SRPO, "FLUX.1 SRPO [dev]"),
    Endpoint("fal-ai/flux-1/dev", flux.FluxDev, _DEV, "FLUX.1 [dev]"),
    Endpoint("fal-ai/flux-1/schnell", flux.FluxSchnell, _SCHNELL, "FLUX.1 [schnell]: 1 to 12 steps"),
    Endpoint("fal-ai/flux-1/krea", flux.FluxKrea, _KREA, "FLUX.1 Krea [dev]"),
    Endpoint("fal-ai/flux-1/srpo", flux.FluxKrea, _SRPO, "FLUX.1 SRPO [dev]"),
    Endpoint("fal-ai/flux-lora", flux.FluxLora, _DEV, "FLUX.1 [dev], adapters not supported yet"),
    Endpoint("fal-ai/flux-krea-lora", flux.FluxLora, _KREA, "FLUX.1 Krea [dev], adapters not supported yet"),
    Endpoint("fal-ai/flux-kontext-lora/text-to-image", flux.KontextLora, _DEV, "Kontext [dev] without a picture"),
)

ENDPOINTS: dict[str, Endpoint] = {row.id: row for row in _ROWS}
_ROOTS = frozenset(app_root(row.id) for row in _ROWS)


def find(path: str) -> tuple[Endpoint, str]:
    """The endpoint of a run or submit path and the app's own sub-route below it (`""`, `"stream"`, ...).

    The longest registered id wins. Raises: PlainError 404 with a sentence, for an unknown app or path.
    """
    name = endpoint_id(path)
    segments = name.split("/")
    for length in range(len(segments), 1, -1):
        row = ENDPOINTS.get("/".join(segments[:length]))
        if row is not None:
            return row, "/".join(segments[length:])
    root = app_root(name)
    if root in _ROOTS:
        raise path_not_found(name.removeprefix(root).strip("/"))
    raise PlainError(404, f"Application '{root[:200]}' not found")


def path_not_found(rest: str) -> PlainError:
    """An unknown route inside a known app, in the words of fal's app framework."""
    return PlainError(404, f"Path /{rest[:200]} not found")
