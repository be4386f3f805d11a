"""What fal's platform API and pages say of endpoints, for the programs that choose one there before they draw."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from server.api.endpoints import ENDPOINTS, Endpoint
from server.api.prices import UNIT, Prices
from server.http.errors import WireError

Row = TypeVar("Row")

HUB_MODELS: Mapping[str, str] = {
    "black-forest-labs/FLUX.1-dev": "fal-ai/flux/dev",
    "black-forest-labs/FLUX.1-schnell": "fal-ai/flux/schnell",
    "black-forest-labs/FLUX.1-Krea-dev": "fal-ai/flux/krea",
    "black-forest-labs/FLUX.1-Kontext-dev": "fal-ai/flux-kontext/dev",
    "black-forest-labs/FLUX.2-klein-4B": "fal-ai/flux-2/klein/4b",
    "black-forest-labs/FLUX.2-klein-9B": "fal-ai/flux-2/klein/9b",
    "black-forest-labs/FLUX.2-klein-base-4B": "fal-ai/flux-2/klein/4b/base",
    "black-forest-labs/FLUX.2-klein-base-9B": "fal-ai/flux-2/klein/9b/base",
    "black-forest-labs/flux-3-image-klein": "blackforestlabs/flux-3/klein/text-to-image",
    "black-forest-labs/flux-3-image-klein-base": "blackforestlabs/flux-3/klein/base/text-to-image",
}
"""Repositories of the Hugging Face hub and the endpoint that draws with them."""


def page_of(rows: Sequence[Row], limit: int, cursor: int | None) -> tuple[Sequence[Row], str | None]:
    """One page of a list and the cursor of the next, None at the end."""
    start = cursor or 0
    end = start + limit
    return rows[start:end], str(end) if end < len(rows) else None


def site_list(rows: Sequence[Endpoint], page: int, size: int, origin: str) -> dict[str, Any]:
    """A page, counted from 1, of the list that fal's site answers to programs which look for an endpoint."""
    shown = rows[(page - 1) * size : page * size]
    items = [
        {
            "id": row.id,
            "title": row.summary,
            "category": row.category,
            "tags": details(row, origin)["tags"],
            "shortDescription": row.summary,
            "thumbnailUrl": f"{origin}/models/{row.id}/thumbnail.svg",
            "modelUrl": f"{origin}/run/{row.id}",
        }
        for row in shown
    ]
    return {"items": items, "page": page, "size": size, "total": len(rows), "pages": math.ceil(len(rows) / size)}


def has_words(row: Endpoint, text: str) -> bool:
    """Whether an endpoint's id and description hold every word of a text."""
    known = f"{row.id} {row.summary}".lower()
    return all(word in known for word in text.lower().split())


def price_list(rows: Iterable[Endpoint], prices: Prices) -> dict[str, Any]:
    """What a unit costs, by the operator's table. A unit is a megapixel."""
    listed = [
        {"endpoint_id": row.id, "unit_price": prices.of(row.id), "unit": UNIT, "currency": prices.currency}
        for row in rows
    ]
    return {"prices": listed, "next_cursor": None, "has_more": False}


def estimate(body: Mapping[str, Any], prices: Prices) -> dict[str, Any]:
    """What so many units or calls would cost; a call is counted as one megapixel.

    Raises: WireError 404 for endpoints that are not here, 400 for quantities that are no numbers.
    """
    asked = body.get("endpoints")
    asked = asked if isinstance(asked, dict) else {}
    total = sum(prices.cost(row.id, _quantity(asked[row.id])) for row in find_all(asked))
    return {"estimate_type": body.get("estimate_type"), "total_cost": round(total, 6), "currency": prices.currency}


def find_all(ids: Iterable[str]) -> list[Endpoint]:
    """The rows of these endpoints. Raises: WireError 404 that names the first that is not here."""
    names = list(ids)
    if (unknown := next((name for name in names if name not in ENDPOINTS), None)) is not None:
        detail = f"Endpoint '{unknown[:200]}' not found; GET /v1/models lists those of this server"
        raise WireError(404, {"detail": detail, "code": "not_found"})
    return [ENDPOINTS[name] for name in names]


def details(row: Endpoint, origin: str) -> dict[str, Any]:
    """What fal's model list says besides what answers here."""
    words = [word for word in row.id.replace("/", "-").split("-") if word not in ("fal", "ai")]
    return {
        "description": row.summary,
        "tags": list(dict.fromkeys([row.category, "flux", *words])),
        "model_url": f"{origin}/docs",
        "thumbnail_url": f"{origin}/models/{row.id}/thumbnail.svg",
    }


def thumbnail(row: Endpoint) -> str:
    """The name of an endpoint as a small picture: lists show one, and ours has no example pictures."""
    text = f'<text x="16" y="96" font-family="sans-serif" font-size="20" fill="#fff">{row.id}</text>'
    sizes = 'width="640" height="180" viewBox="0 0 640 180"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {sizes}><rect width="640" height="180" fill="#234"/>{text}</svg>'


def hub_model(repo: str) -> dict[str, Any] | None:
    """The hub's answer about which provider serves a repository; None for one that nothing here draws with."""
    endpoint = HUB_MODELS.get(repo)
    if endpoint is None:
        return None
    task = "text-to-image" if ENDPOINTS[endpoint].category == "text-to-image" else "image-to-image"
    mapping = {"status": "live", "providerId": endpoint, "task": task}
    return {"_id": repo, "id": repo, "inferenceProviderMapping": {"fal-ai": mapping}}


def _quantity(asked: object) -> float:
    values = asked if isinstance(asked, dict) else {}
    quantity = values.get("unit_quantity", values.get("call_quantity", 1))
    if isinstance(quantity, bool) or not isinstance(quantity, int | float) or not 0 <= quantity < math.inf:
        raise WireError(400, {"detail": "unit_quantity must be a number, 0 or more", "code": "bad_request"})
    return quantity
