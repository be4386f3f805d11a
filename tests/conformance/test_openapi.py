"""The server against its own description: whatever the document allows or forbids, every answer is a documented one."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import negative_data_rejection, positive_data_acceptance
from schemathesis.core.failures import FailureGroup
from schemathesis.generation.modes import GenerationMode

from tests.conformance.scripted import TINY, Scripted

PATHS = (
    r"^/(run|queue)/fal-ai/flux-pro$|^/run/fal-ai/(flux/schnell|flux-pro/v1.1-ultra|flux-pro/kontext/text-to-image)$"
    r"|^/run/fal-ai/(flux-lora|flux/dev/stream)$|^/queue/fal-ai/flux/requests/|^/(v1|api|livez|readyz|health|metrics|docs)"
)
"""Every kind of route and of input once: the endpoints of one schema are answered by the same code."""


Case = schemathesis.Case[Any]
PATIENT = settings(
    max_examples=6, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def test_every_answer_is_a_documented_one(hasty: Scripted) -> None:
    document = schemathesis.openapi.from_url(f"{hasty.url}/openapi.json", wait_for_schema=60)
    operations: list[Any] = [found.ok() for found in document.include(path_regex=PATHS).get_all_operations()]  # type: ignore[union-attr]
    assert len(operations) > 15
    faults: list[str] = []

    @PATIENT
    def judge(case: Case) -> None:
        if case.meta is None or case.meta.generation.mode is GenerationMode.POSITIVE:
            make_cheap(case)
        try:
            case.call_and_validate(excluded_checks=excluded(case), timeout=60)
        except FailureGroup as failed:
            # All of them at once, and none searched for a smaller example: that would take minutes.
            faults.extend(f"{case.method} {case.path}: {failure}" for failure in failed.exceptions)

    for operation in operations:
        for mode in GenerationMode:
            if mode is GenerationMode.POSITIVE or operation.body or operation.query:
                given(case=operation.as_strategy(generation_mode=mode))(judge)()
    assert not faults, "\n\n".join(faults)


def make_cheap(case: Case) -> None:
    """Ask for one small picture where the case asks for a valid other one: it is the answer that is judged."""
    small: dict[str, Any] = {"num_images": 1, "image_size": TINY["image_size"], "n": 1, "size": "64x64"}
    small |= {"output_compression": 100}  # less is for formats that can lose
    # Addresses that were made up would be looked for on the network.
    small |= {"loras": [], "image_url": None}
    body: Any = case.body
    if isinstance(body, dict):
        body |= {name: value for name, value in small.items() if name in body}


def excluded(case: Case) -> list[Any]:
    """Checks that fal's protocol contradicts."""
    if case.path.startswith("/queue/") and case.method.upper() == "POST":
        # Any object is taken at submit; what the model rejects answers at the result.
        return [negative_data_rejection]
    if case.path in (
        "/v1/models/usage",
        "/v1/models/analytics",
        "/api/models",
        "/v1/models/requests/by-endpoint",
        "/v1/jobs",
    ):
        # One word stands for a list of one, and all that is written in a query is words.
        return [negative_data_rejection]
    if any(isinstance(value, dict | list) for value in (case.query or {}).values()):
        # In place of a word, an object is written as names that no parameter has, which are ignored, and a list as
        # the word repeated, of which the last counts.
        return [negative_data_rejection]
    if case.path in ("/v1/images/edits", "/v1/images/variations") or "'loras'" in str(case.body):
        # That bytes are a picture, or that an address leads to an adapter, is no pattern either.
        return [positive_data_acceptance]
    if "aspect_ratio" in str(case.body):
        # That a ratio lies between two others is no pattern.
        return [positive_data_acceptance]
    return []
