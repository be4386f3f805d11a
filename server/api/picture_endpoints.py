"""Which endpoint takes the pictures of a call that names an endpoint: itself, a plain sibling, or none."""

from __future__ import annotations

from collections.abc import Iterator

from server.api.endpoints import ENDPOINTS, Endpoint
from server.api.errors import InputError, problem

_PICTURES = frozenset({"image_url", "image_urls", "control_image_url"})
"""A schema that has none of these would ignore what was sent, as fal's ignore all they do not know."""


def taking_pictures(row: Endpoint, sibling: str, example: str) -> Endpoint:
    """The endpoint that is meant where pictures come along.

    Args: sibling: what fal calls the kind of endpoint that the call is, such as `edit`. example: one of that kind.
    Raises: InputError at `model` where neither the endpoint nor a sibling of that kind takes a picture.
    """
    if _takes_pictures(row):
        return row
    found = next((ENDPOINTS[name] for name in _siblings(row, sibling) if name in ENDPOINTS), None)
    if found is None:
        reworking = [name for name in _siblings(row, "image-to-image") if name in ENDPOINTS]
        others = " and ".join(dict.fromkeys([*reworking, example]))
        msg = f"{row.id} takes no picture: {others} {'do' if reworking else 'does'}"
        raise InputError([problem(["model"], msg, "no_picture_taken")])
    return found


def taking_several(row: Endpoint, pictures: int) -> Endpoint:
    """The endpoint that is meant by one that takes pictures. Raises: InputError at `image` where it takes only one."""
    several = ENDPOINTS.get(f"{row.id}/multi", row)
    if "image_urls" in several.schema.model_fields:
        return several
    msg = f"{row.id} takes one picture, not {pictures}: fal-ai/flux-pro/kontext/multi takes several"
    raise InputError([problem(["image"], msg, "too_many_pictures")])


def _takes_pictures(row: Endpoint) -> bool:
    return not _PICTURES.isdisjoint(row.schema.model_fields)


def _siblings(row: Endpoint, kind: str) -> Iterator[str]:
    """Ids that the endpoint's own kind could have; fal writes `edit` before or after `lora`."""
    parent, _, last = (row.alias_of or row.id).rpartition("/")
    yield f"{parent}/{last}/{kind}"
    yield f"{parent}/{kind}/{last}"
    if last == "text-to-image" and kind == "edit":
        yield f"{parent}/edit"
        yield parent  # Kontext's plain ids edit
