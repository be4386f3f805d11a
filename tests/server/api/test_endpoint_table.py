"""What answers which endpoint, in words: for an operator and for the docs."""

from __future__ import annotations

from pathlib import Path

from models.registry import REGISTRY
from server.api import endpoint_table
from server.api.endpoints import ENDPOINTS
from server.api.served import Served
from server.api.unserved import UNSERVED

DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_of_the_docs_is_as_the_command_makes_it() -> None:
    assert (DOCS / "endpoints.md").read_text() == endpoint_table.markdown()


def test_every_endpoint_has_its_checkpoint_what_is_missing_or_its_reason() -> None:
    rows = dict(endpoint_table.rows(Served((REGISTRY["FLUX.1-dev"], REGISTRY["FLUX.1-Redux-dev"]))))
    assert set(rows) == set(ENDPOINTS) | set(UNSERVED)
    assert rows["fal-ai/flux/dev"] == "FLUX.1-dev"
    assert rows["fal-ai/flux/dev/redux"] == "FLUX.1-dev with FLUX.1-Redux-dev"
    assert rows["fal-ai/flux-pro/v1/fill"] == "missing: --model FLUX.1-Fill-dev"
    assert rows["fal-ai/flux-pro/v1/vto"].startswith("not served: ")
