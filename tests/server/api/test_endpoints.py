"""The endpoint table against what fal publishes (an extract of it lies beside this file)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from models.registry import AUXILIARIES, Variant
from server.api.endpoints import ENDPOINTS, drawing_with, find
from server.api.schemas import sizes
from server.api.unserved import UNSERVED
from server.http.errors import PlainError

PUBLISHED: dict[str, Any] = json.loads((Path(__file__).parents[1] / "fal_endpoints.json").read_text())
EXTRAS = {"enable_safety_checker", "enhance_prompt", "expand_prompt", "sync_mode"}
"""Fields that we accept beyond the published ones: endpoints had them once, and old callers send them; or others of
fal's have them; pictures inside the answer are for every caller."""

OWN_LEVELS = {"acceleration": ["max"]}
"""Choices that we offer beyond the published ones, by field."""

FAL = "fal-ai/"
"""The namespace that the published facts cover."""
LIMITS = ("minimum", "maximum", "exclusiveMinimum", "enum")


def field_schema(schema: dict[str, Any], name: str) -> dict[str, Any]:
    """A field's JSON schema, with the alternative that is not null folded in."""
    field: dict[str, Any] = schema["properties"][name]
    for part in field.get("anyOf", []):
        if part.get("type") != "null":
            field = field | part
    return field


@pytest.mark.parametrize("endpoint", sorted(name for name in ENDPOINTS if name.startswith(FAL)))
def test_fields_defaults_and_limits_are_fals(endpoint: str) -> None:
    schema = ENDPOINTS[endpoint].schema.model_json_schema(mode="serialization")
    required = ENDPOINTS[endpoint].schema.model_json_schema().get("required", [])
    published = PUBLISHED["endpoints"][endpoint]["fields"]
    assert set(published) <= set(schema["properties"]) <= set(published) | EXTRAS
    for name, facts in published.items():
        ours = field_schema(schema, name)
        assert (name in required) is facts["required"], name
        assert ours.get("default") == facts.get("default"), name
        for limit in LIMITS:
            if name != "seed":
                assert _without_our_own(name, ours.get(limit)) == facts.get(limit), (name, limit)
        if facts.get("nullable"):
            assert {"type": "null"} in schema["properties"][name]["anyOf"], name


def _without_our_own(name: str, limit: Any) -> Any:
    return [each for each in limit if each not in OWN_LEVELS.get(name, ())] if isinstance(limit, list) else limit


@pytest.mark.parametrize("endpoint", sorted(name for name in ENDPOINTS if name.startswith(FAL)))
def test_the_category_is_fals(endpoint: str) -> None:
    assert ENDPOINTS[endpoint].category == PUBLISHED["endpoints"][endpoint]["category"]


def test_every_endpoint_of_fals_catalogue_is_served_or_refused_with_a_reason() -> None:
    # Streaming is a sub-route of every endpoint here, so those two need no rows.
    own = {name for name in ENDPOINTS if name.startswith(FAL)}
    assert own | set(UNSERVED) == {name for name in PUBLISHED["all"] if not name.endswith("/stream")}
    assert not set(ENDPOINTS) & set(UNSERVED)
    assert not [reason for reason in UNSERVED.values() if "are served" in reason], "no reason knows what one serves"


@pytest.mark.parametrize("endpoint", sorted(UNSERVED))
def test_an_endpoint_that_is_not_served_says_why(endpoint: str) -> None:
    with pytest.raises(PlainError) as caught:
        find(f"/{endpoint}")
    assert (caught.value.status, caught.value.body) == (
        404,
        {"detail": f"{endpoint} is not served: {UNSERVED[endpoint]}"},
    )


def test_dimension_tables_are_fals() -> None:
    as_lists = {name: list(pixels) for name, pixels in sizes.PRESETS.items()}
    assert as_lists == PUBLISHED["presets"]
    assert {name: list(pixels) for name, pixels in sizes.ULTRA_4MP.items()} == PUBLISHED["ultra_4mp"]
    assert {name: list(pixels) for name, pixels in sizes.KONTEXT_1MP.items()} == PUBLISHED["kontext_1mp"]


@pytest.mark.parametrize(
    ("path", "endpoint", "rest"),
    [
        ("/fal-ai/flux-pro", "fal-ai/flux-pro", ""),
        ("/fal-ai/flux-pro/v1.1", "fal-ai/flux-pro/v1.1", ""),
        ("/fal-ai/flux-pro/v1.1-ultra", "fal-ai/flux-pro/v1.1-ultra", ""),
        ("/fal-ai/flux/dev/stream", "fal-ai/flux/dev", "stream"),
        ("/fal-ai/flux-pro/stream", "fal-ai/flux-pro", "stream"),
        ("/fal-ai/flux/dev/a/b", "fal-ai/flux/dev", "a/b"),
    ],
)
def test_the_longest_registered_id_wins(path: str, endpoint: str, rest: str) -> None:
    row, below = find(path)
    assert (row.id, below) == (endpoint, rest)


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        ("/fal-ai/unknown", "Application 'fal-ai/unknown' not found"),
        ("/flux", "Application 'flux' not found"),
        ("/", "Application '' not found"),
        ("/1234-my-app", "Application '1234/my-app' not found"),
        ("/fal-ai/flux/unknown", "Path /unknown not found"),
        ("/fal-ai/flux", "Path / not found"),
        ("/FAL-AI/flux/dev", "Application 'FAL-AI/flux' not found"),
    ],
)
def test_unknown_endpoints_are_404_with_a_sentence(path: str, detail: str) -> None:
    with pytest.raises(PlainError) as caught:
        find(path)
    assert (caught.value.status, caught.value.body) == (404, {"detail": detail})


def test_every_checkpoint_draws_from_text_at_an_endpoint_of_its_own_where_it_has_one() -> None:
    rows = {variant: drawing_with(variant) for variant in get_args(Variant)}
    assert {variant for variant, row in rows.items() if row is None} == {"fill", "canny", "depth", *AUXILIARIES}
    asked = {variant: row.id for variant, row in rows.items() if row is not None}
    assert asked == {
        "dev": "fal-ai/flux/dev",
        "schnell": "fal-ai/flux/schnell",
        "krea": "fal-ai/flux/krea",
        "srpo": "fal-ai/flux/srpo",
        "kontext": "fal-ai/flux-kontext-lora/text-to-image",
        "klein-4b": "fal-ai/flux-2/klein/4b",
        "klein-9b": "fal-ai/flux-2/klein/9b",
        "klein-base-4b": "fal-ai/flux-2/klein/4b/base",
        "klein-base-9b": "fal-ai/flux-2/klein/9b/base",
        "flux2-dev": "fal-ai/flux-2",
        "flux2-turbo": "fal-ai/flux-2/turbo",
        "flux3-klein": "blackforestlabs/flux-3/klein/text-to-image",
        "flux3-klein-base": "blackforestlabs/flux-3/klein/base/text-to-image",
        "sdxl": "fal-ai/playground-v25",
        "lightning": "fal-ai/fast-lightning-sdxl",
        "playground": "fal-ai/playground-v25",
    }


def test_every_endpoint_knows_the_steps_of_a_request_that_says_nothing() -> None:
    usual = {name: row.usual_steps for name, row in ENDPOINTS.items()}
    assert usual["fal-ai/fast-lightning-sdxl/inpainting"] == 4
    assert usual["fal-ai/flux-pro/v1.1"] is None
    assert all(steps is None or 1 <= steps <= 50 for steps in usual.values())
