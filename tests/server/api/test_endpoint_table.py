"""What answers which endpoint, in words: for an operator and for the docs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from models.registry import REGISTRY, ModelSpec
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
    assert rows["fal-ai/flux-2/turbo"].startswith("missing: --model FLUX.2-dev+flux.2-turbo-lora.safetensors")


def test_flux2_with_turbo_worked_in_answers_for_turbo_alone() -> None:
    turbo = replace(
        REGISTRY["FLUX.2-dev"], name="turbo", variant="flux2-turbo", adapter="flux.2-turbo-lora.safetensors"
    )
    answers = {name: answer for name, answer in endpoint_table.rows(Served((turbo,))) if answer == "turbo"}
    assert set(answers) == {f"fal-ai/flux-2/{kind}{edit}" for kind in ("turbo", "flash") for edit in ("", "/edit")}


def test_what_follows_depth_is_told_what_tells_the_depth_of_a_picture() -> None:
    depth, estimator = REGISTRY["FLUX.1-Depth-dev"], REGISTRY["Depth-Anything-V2-Small"]

    def answer(*served: ModelSpec, endpoint: str = "fal-ai/flux-lora-depth") -> str:
        return dict(endpoint_table.rows(Served(served)))[endpoint]

    ready = "fal-ai/flux-control-lora-depth"
    only_ready = "FLUX.1-Depth-dev, without --model Depth-Anything-V2-Small only by `preprocess_depth: false`"
    assert answer(depth) == "missing: --model Depth-Anything-V2-Small"
    assert answer(depth, endpoint=ready) == only_ready
    for endpoint in ("fal-ai/flux-lora-depth", ready):
        both = answer(depth, estimator, endpoint=endpoint)
        assert both == "FLUX.1-Depth-dev with Depth-Anything-V2-Small"
        embedded = answer(REGISTRY["flux-shapes"], endpoint=endpoint)
        assert embedded == "flux-shapes-depth (loaded on demand)", "it brings its own"
    (row,) = [line for line in endpoint_table.markdown().splitlines() if line.startswith("| `fal-ai/flux-lora-depth` ")]
    assert "| FLUX.1-Depth-dev with Depth-Anything-V2-Small |" in row


def test_without_an_estimator_the_lists_hold_only_what_takes_depth() -> None:
    depth, ready = REGISTRY["FLUX.1-Depth-dev"], "fal-ai/flux-control-lora-depth"
    endpoints = {row.id: row for row in ENDPOINTS.values() if row.variants == ("depth",)}

    def listed(served: Served) -> dict[str, Any]:
        return {row["endpoint_id"]: row["metadata"] for row in model_list(endpoints.values(), served)["models"]}

    alone = Served((depth,))
    active = {name for name, row in listed(alone).items() if row["status"] == "active"}
    assert active == {name for name, row in endpoints.items() if alone.answers(row.variants, row.beside)} == {ready}
    assert "--model Depth-Anything-V2-Small" in listed(alone)["fal-ai/flux-pro/v1/depth"]["reason"]
    whole = listed(Served((depth,), (REGISTRY["Depth-Anything-V2-Small"],)))
    assert {row["status"] for row in whole.values()} == {"active"}
    assert whole["fal-ai/flux-pro/v1/depth"]["with"] == "Depth-Anything-V2-Small"
    embedded = listed(Served((REGISTRY["flux-shapes"],)))
    assert {(row["status"], row["with"]) for row in embedded.values()} == {("active", None)}


def test_plain_sdxl_answers_for_playground_unless_that_is_served() -> None:
    sdxl, playground = REGISTRY["SDXL"], REGISTRY["Playground-v2.5"]
    rows = dict(endpoint_table.rows(Served((sdxl,))))
    assert rows["fal-ai/playground-v25/inpainting"] == "SDXL"
    assert dict(endpoint_table.rows(Served((sdxl, playground))))["fal-ai/playground-v25"] == "Playground-v2.5"
    listed = {row["endpoint_id"]: row["metadata"] for row in model_list(ENDPOINTS.values(), Served((sdxl,)))["models"]}
    assert listed["fal-ai/playground-v25"]["is_substitute"] is True


def test_of_several_lightnings_the_one_for_the_requests_steps_answers() -> None:
    served = Served((REGISTRY["SDXL"], lightning(2), lightning(8)))
    found = {steps: served.model_for(("lightning",), steps).name for steps in (1, 2, 4, 8)}
    assert found == {1: "sdxl_2step", 2: "sdxl_2step", 4: "sdxl_2step", 8: "sdxl_8step"}
    assert Served((lightning(8), lightning(2))).model_for(("lightning",), 2).name == "sdxl_2step"
    assert Served((lightning(1), lightning(4))).model_for(("lightning",), 8).name == "sdxl_4step"


def test_a_lightning_for_the_requests_steps_answers_also_if_it_must_be_loaded_first() -> None:
    served = Served((lightning(2),), (lightning(8),))
    assert served.model_for(("lightning",), 8).name == "sdxl_8step"


def test_a_lightning_that_draws_in_any_number_of_steps_answers_what_no_other_is_for() -> None:
    served = Served((lightning(2), lightning(None), lightning(8)))
    found = {steps: served.model_for(("lightning",), steps).name for steps in (1, 2, 4, 8)}
    assert found == {1: "sdxl_Nonestep", 2: "sdxl_2step", 4: "sdxl_Nonestep", 8: "sdxl_8step"}


def test_the_embedded_lightning_answers_all_steps_and_stands_in_for_no_other() -> None:
    embedded = Served((REGISTRY["flux-shapes"],))
    assert {embedded.model_for(("lightning",), steps).name for steps in (1, 2, 4, 8)} == {"sdxl-shapes-lightning"}
    beside = Served((REGISTRY["flux-shapes"], lightning(2)))
    assert {beside.model_for(("lightning",), steps).name for steps in (1, 2, 4, 8)} == {"sdxl_2step"}
    assert embedded.by_steps(("lightning",)) == {}


def test_the_lists_name_every_lightning_with_its_steps() -> None:
    served = Served((lightning(8), lightning(2)))
    rows = dict(endpoint_table.rows(served))
    assert rows["fal-ai/fast-lightning-sdxl"] == "sdxl_2step, in 8 steps sdxl_8step"
    listed = {row["endpoint_id"]: row["metadata"] for row in model_list(ENDPOINTS.values(), served)["models"]}
    four = listed["fal-ai/fast-lightning-sdxl/inpainting"]
    assert (four["served_by"], four["by_steps"]) == ("sdxl_2step", {"2": "sdxl_2step", "8": "sdxl_8step"})
    plain = model_list(ENDPOINTS.values(), Served((REGISTRY["FLUX.1-dev"],)))["models"]
    assert not any("by_steps" in row["metadata"] for row in plain)


def lightning(steps: int | None) -> ModelSpec:
    return replace(REGISTRY["random:SDXL-Lightning"], name=f"sdxl_{steps}step", distilled_steps=steps)


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
