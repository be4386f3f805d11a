"""What answers which endpoint, in words: for an operator and for the docs."""

from __future__ import annotations

from pathlib import Path

from models.registry import REGISTRY
from server.api import endpoint_table
from server.api.catalogue import model_list
from server.api.endpoints import ENDPOINTS
from server.api.served import Served
from server.api.unserved import UNSERVED

DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_of_the_docs_is_as_the_command_makes_it() -> None:
    assert (DOCS / "endpoints.md").read_text() == endpoint_table.markdown()


def test_readme_and_manual_count_what_there_is() -> None:
    answered, listed = len(ENDPOINTS), len(ENDPOINTS) + len(UNSERVED)
    assert f"{answered} of fal's endpoints" in (DOCS.parent / "README.md").read_text()
    assert f"all {listed} of fal's catalogue, the {answered} that are answered" in (DOCS / "api.md").read_text()


def test_every_endpoint_has_its_checkpoint_what_is_missing_or_its_reason() -> None:
    rows = dict(endpoint_table.rows(Served((REGISTRY["FLUX.1-dev"], REGISTRY["FLUX.1-Redux-dev"]))))
    assert set(rows) == set(ENDPOINTS) | set(UNSERVED)
    assert rows["fal-ai/flux/dev"] == "FLUX.1-dev"
    assert rows["fal-ai/flux/dev/redux"] == "FLUX.1-dev with FLUX.1-Redux-dev"
    assert rows["fal-ai/flux-pro/v1/fill"] == "missing: --model FLUX.1-Fill-dev"
    assert rows["fal-ai/flux-pro/v1/vto"].startswith("not served: ")
    assert rows["fal-ai/fast-lightning-sdxl"] == "missing: --model SDXL+sdxl_lightning_4step_unet.safetensors"
    assert rows["fal-ai/flux-2/turbo"].startswith("missing: --model FLUX.2-dev+FILE, with turbo")


def test_plain_sdxl_answers_for_playground_unless_that_is_served() -> None:
    sdxl, playground = REGISTRY["SDXL"], REGISTRY["Playground-v2.5"]
    rows = dict(endpoint_table.rows(Served((sdxl,))))
    assert rows["fal-ai/playground-v25/inpainting"] == "SDXL"
    assert dict(endpoint_table.rows(Served((sdxl, playground))))["fal-ai/playground-v25"] == "Playground-v2.5"
    listed = {row["endpoint_id"]: row["metadata"] for row in model_list(ENDPOINTS.values(), Served((sdxl,)))["models"]}
    assert listed["fal-ai/playground-v25"]["is_substitute"] is True


def test_the_best_checkpoint_answers_also_if_it_must_be_loaded_first() -> None:
    served = Served((REGISTRY["FLUX.1-dev"],), (REGISTRY["FLUX.1-Krea-dev"], REGISTRY["FLUX.1-Redux-dev"]))
    rows = dict(endpoint_table.rows(served))
    assert rows["fal-ai/flux/dev"] == "FLUX.1-dev"
    assert rows["fal-ai/flux/krea"] == "FLUX.1-Krea-dev (loaded on demand)"
    assert rows["fal-ai/flux/dev/redux"] == "FLUX.1-dev with FLUX.1-Redux-dev"
    listed = {row["endpoint_id"]: row["metadata"] for row in model_list(ENDPOINTS.values(), served)["models"]}
    assert listed["fal-ai/flux/krea"]["is_on_demand"] is True
    assert listed["fal-ai/flux/dev"]["is_on_demand"] is False
    assert "--models-on-demand FLUX.1-Fill-dev" in listed["fal-ai/flux-pro/v1/fill"]["reason"]
