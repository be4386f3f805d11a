"""What `--model fake:` may be told."""

from __future__ import annotations

import pytest

from models.arguments import UnknownModelError, resolve, resolve_all
from models.checkpoint import open_checkpoint
from models.errors import LoadError
from models.fake import FakeOptions, parse_options
from models.registry import siblings
from server.api.endpoints import ENDPOINTS
from server.api.served import Served


def test_options_are_pace_size_and_faults() -> None:
    assert parse_options("fake:") == FakeOptions()
    options = parse_options("fake:step_ms=0.5:load_s=3:batch=4:crash=100:oom=20")
    assert (options.step_ms, options.load_s, options.batch) == (0.5, 3.0, 4)
    assert options.every == {"crash": 100, "oom": 20}


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("fake:fast", "'fast' is no option"),
        ("fake:step_ms=-1", "'step_ms=-1' is no option"),
        ("fake:step=1", "there is no option 'step'"),
        ("fake:batch=0", "whole numbers from 1"),
        ("fake:crash=0", "whole numbers from 1"),
        ("FLUX.1-dev=fake:", "give fake: alone"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_sentence(argument: str, complaint: str) -> None:
    with pytest.raises(UnknownModelError, match=complaint):
        resolve(argument)


def test_it_stands_beside_no_other_model() -> None:
    with pytest.raises(UnknownModelError, match="stands beside no other"):
        resolve_all(["fake:", "flux-shapes"])


def test_it_answers_every_endpoint_under_names_that_say_so() -> None:
    served = Served(resolve_all(["fake:step_ms=1"]))
    drawn_by = [served.model_for(endpoint.variants, None) for endpoint in ENDPOINTS.values()]
    assert all(spec.name.startswith("fake") and spec.draws for spec in drawn_by)
    for endpoint, spec in zip(ENDPOINTS.values(), drawn_by, strict=True):
        if endpoint.beside is not None:
            assert served.beside(spec, endpoint.beside).is_fake


def test_real_models_bring_no_fakes_along() -> None:
    assert not any(spec.is_fake for spec in siblings(resolve_all(["flux-shapes"])))


def test_it_has_no_weights_to_load() -> None:
    with pytest.raises(LoadError, match="has no weights"):
        open_checkpoint(resolve("fake:"))
