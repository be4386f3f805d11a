"""OpenAI's edits and variations: what a form with files becomes, and how wrong ones are answered."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from models.registry import REGISTRY
from server.api.errors import InputError, problem
from server.api.submission import rejection
from server.jobs.store.job import Job, JobStatus, Outcome
from tests.server.api_server import Api, eventually
from tests.server.files.test_decoding import packed, quarters

PNG = packed(quarters(), "PNG")
FLUX_1 = tuple(spec for name, spec in REGISTRY.items() if name.startswith("FLUX.1-"))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


@pytest.fixture
def everything(api: Api) -> Api:
    object.__setattr__(api.node.served, "specs", FLUX_1)
    return api


def begun(
    api: Api, pool: ThreadPoolExecutor, path: str, files: Any, **fields: Any
) -> tuple[Job, Future[httpx.Response]]:
    answer = pool.submit(api.http.post, f"/v1/images/{path}", files=files, data=fields)
    eventually(lambda: api.node.store.counts().get(JobStatus.QUEUED) or answer.done())
    assert not answer.done(), answer.result().text
    return api.node.claim(), answer


def picture(name: str = "image", data: bytes = PNG) -> tuple[str, tuple[str, bytes, str]]:
    return name, ("a.png", data, "image/png")


def test_one_picture_and_an_instruction_is_a_kontext_edit(everything: Api, pool: ThreadPoolExecutor) -> None:
    job, answer = begun(everything, pool, "edits", [picture()], prompt="make it green", n="2", size="1024x1024")
    assert (job.endpoint, job.needs_inputs) == ("fal-ai/flux-kontext/dev", True)
    assert base64.b64decode(job.input["image_url"].partition(",")[2]) == PNG
    assert job.params is not None
    assert (job.params["prompt"], job.params["num_images"]) == ("make it green", 2)
    everything.node.finish(job)
    assert "url" in answer.result().json()["data"][0]


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_several_pictures_are_composed(everything: Api, pool: ThreadPoolExecutor, name: str) -> None:
    job, answer = begun(everything, pool, "edits", [picture(name), picture(name)], prompt="both")
    assert (job.endpoint, len(job.input["image_urls"])) == ("fal-ai/flux-pro/kontext/multi", 2)
    everything.node.finish(job)
    assert answer.result().status_code == 200


def test_the_transparent_part_of_a_mask_is_drawn_anew(everything: Api, pool: ThreadPoolExecutor) -> None:
    mask = quarters().convert("RGBA")
    mask.putalpha(Image.new("L", mask.size, 255))
    mask.paste((9, 9, 9, 0), (0, 0, 16, 16))
    files = [picture(), picture("mask", packed(mask, "PNG"))]
    job, answer = begun(everything, pool, "edits", files, prompt="a star", model="fal-ai/flux-pro/v1/fill")
    assert job.endpoint == "fal-ai/flux-pro/v1/fill"
    with Image.open(BytesIO(base64.b64decode(job.input["mask_url"].partition(",")[2]))) as sent:
        shades = np.asarray(sent)
    assert (shades[:, :16].min(), shades[:, 16:].max()) == (255, 0)
    everything.node.finish(job)
    assert answer.result().status_code == 200


def test_an_edit_streams_previews_and_its_end(everything: Api, pool: ThreadPoolExecutor) -> None:
    fields = {"prompt": "make it green", "stream": "true", "partial_images": "1", "output_format": "webp"}
    job, answer = begun(everything, pool, "edits", [picture()], **fields)
    assert (job.output["format"], (job.params or {})["preview_every"]) == ("webp", 14)
    everything.node.step(job, 14, preview=True)
    eventually(lambda: everything.node.live.progress(job.id))
    time.sleep(0.5)  # until the stream has told it
    image = {"url": "data:image/webp;base64,cGl4ZWxz", "width": 64, "height": 64}
    everything.node.finish(job, Outcome(JobStatus.COMPLETED, 200, {"images": [image]}))
    names = [line[7:] for line in answer.result().text.splitlines() if line.startswith("event: ")]
    assert names == ["image_edit.partial_image", "image_edit.completed"]
    assert '"b64_json":"cGl4ZWxz"' in answer.result().text


def test_an_edit_for_callers_of_the_new_models_is_inline_and_described(
    everything: Api, pool: ThreadPoolExecutor
) -> None:
    fields = {"prompt": "make it green", "model": "gpt-image-1", "output_format": "jpeg", "output_compression": "60"}
    job, answer = begun(everything, pool, "edits", [picture()], **fields)
    assert (job.output["sync_mode"], job.output["format"], job.output["quality"]) == (True, "jpeg", 60)
    image = {"url": "data:image/jpeg;base64,cGl4ZWxz", "width": 64, "height": 32}
    everything.node.finish(job, Outcome(JobStatus.COMPLETED, 200, {"images": [image]}))
    body = answer.result().json()
    assert body["data"] == [{"b64_json": "cGl4ZWxz"}]
    assert (body["size"], body["output_format"], body["usage"]["total_tokens"]) == ("64x32", "jpeg", 0)


def test_a_variation_needs_no_prompt(everything: Api, pool: ThreadPoolExecutor) -> None:
    job, answer = begun(everything, pool, "variations", [picture()], response_format="b64_json")
    assert (job.endpoint, job.output["sync_mode"]) == ("fal-ai/flux/dev/redux", True)
    everything.node.finish(job)
    assert answer.result().status_code == 200


@pytest.mark.parametrize(
    ("content", "status", "param"),
    [
        ({"data": {"prompt": "x"}, "files": [("other", ("a", b"b"))]}, 400, "image"),
        ({"data": {"n": "9"}, "files": [picture()]}, 400, "n"),
        ({"json": {"prompt": "x"}}, 400, None),
        ({"files": [picture(), picture("mask", b"no picture")]}, 400, "mask"),
    ],
)
def test_what_is_wrong_is_told_in_openais_shape(
    everything: Api, content: dict[str, Any], status: int, param: str | None
) -> None:
    answer = everything.http.post("/v1/images/edits", **content)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


@pytest.mark.parametrize(
    ("path", "names", "fields", "loc", "param"),
    [
        ("edits", ["image"], {}, ["image_url"], "image"),
        ("edits", ["image[]"], {}, ["image_url"], "image"),
        ("edits", ["image[]", "image[]"], {}, ["image_urls", 1], "image.1"),
        ("edits", ["image"], {"model": "fal-ai/flux-pro/v1/canny"}, ["control_image_url"], "image"),
        ("edits", ["image", "mask"], {}, ["mask_url"], "mask"),
        ("variations", ["image"], {}, ["image_url"], "image"),
    ],
)
@pytest.mark.parametrize("stream", ["false", "true"])
def test_what_is_wrong_with_a_picture_is_told_at_the_callers_own_field(
    everything: Api,
    pool: ThreadPoolExecutor,
    path: str,
    names: list[str],
    fields: dict[str, str],
    loc: list[str | int],
    param: str,
    stream: str,
) -> None:
    files = [picture(name) for name in names]
    job, answer = begun(everything, pool, path, files, prompt="x", stream=stream, **fields)
    fault = problem(loc, "Pictures must be JPEG, PNG or WebP", "unsupported_image_format")
    everything.node.finish(job, rejection(InputError([fault])))
    error = answer.result().json()["error"]
    assert (answer.result().status_code, error["param"], error["code"]) == (400, param, "unsupported_image_format")


def test_an_edit_without_its_checkpoint_names_the_flag(api: Api) -> None:
    answer = api.http.post("/v1/images/edits", files=[picture()], data={"prompt": "x"})
    assert answer.status_code == 404
    assert "--model FLUX.1-Kontext-dev" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("count", "path"), [(1, "edits"), (2, "edits")])
def test_where_only_flux2_is_served_it_edits(api: Api, pool: ThreadPoolExecutor, count: int, path: str) -> None:
    object.__setattr__(api.node.served, "specs", (REGISTRY["FLUX.2-klein-4B"],))
    object.__setattr__(api.node.served, "on_demand", ())
    job, answer = begun(api, pool, path, [picture("image[]")] * count, prompt="make it green")
    assert job.endpoint == "fal-ai/flux-2/klein/4b/edit"
    assert len(job.input["image_urls"]) == count
    api.node.finish(job)
    assert answer.result().status_code == 200


@pytest.mark.parametrize(
    ("path", "named", "meant"),
    [
        ("edits", "fal-ai/flux-2/klein/4b", "fal-ai/flux-2/klein/4b/edit"),
        ("edits", "fal-ai/flux-2/klein/9b/base", "fal-ai/flux-2/klein/9b/base/edit"),
        ("edits", "fal-ai/flux-2/klein/4b/lora", "fal-ai/flux-2/klein/4b/edit/lora"),
        ("edits", "fal-ai/flux-2/lora", "fal-ai/flux-2/lora/edit"),
        ("edits", "fal-ai/flux-pro/kontext/text-to-image", "fal-ai/flux-pro/kontext"),
        ("edits", "blackforestlabs/flux-3/klein/text-to-image", "blackforestlabs/flux-3/klein/edit"),
        ("edits", "fal-ai/flux/dev/image-to-image", "fal-ai/flux/dev/image-to-image"),
        ("variations", "fal-ai/flux/schnell", "fal-ai/flux/schnell/redux"),
        ("variations", "fal-ai/flux-2/klein/4b/edit", "fal-ai/flux-2/klein/4b/edit"),
    ],
)
def test_an_endpoint_that_draws_from_text_means_its_sibling_that_takes_pictures(
    api: Api, pool: ThreadPoolExecutor, path: str, named: str, meant: str
) -> None:
    object.__setattr__(api.node.served, "specs", tuple(REGISTRY.values()))
    job, answer = begun(api, pool, path, [picture()], prompt="make it green", model=named)
    assert (job.endpoint, job.needs_inputs) == (meant, True)
    api.node.finish(job)
    assert answer.result().status_code == 200


@pytest.mark.parametrize(
    ("path", "named", "message"),
    [
        ("edits", "fal-ai/flux/dev", "fal-ai/flux/dev/image-to-image and fal-ai/flux-kontext/dev do"),
        ("edits", "fal-ai/flux/schnell", "fal-ai/flux-kontext/dev does"),
        ("variations", "fal-ai/flux-2/klein/4b", "fal-ai/flux/dev/redux does"),
    ],
)
def test_an_endpoint_without_a_sibling_for_pictures_is_refused(
    everything: Api, path: str, named: str, message: str
) -> None:
    answer = everything.http.post(f"/v1/images/{path}", files=[picture()], data={"prompt": "x", "model": named})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "model")
    assert error["message"] == f"{named} takes no picture: {message}"


def test_a_mask_is_refused_where_nothing_is_drawn_behind_one(everything: Api) -> None:
    fields = {"prompt": "x", "model": "fal-ai/flux-2/klein/4b/edit"}
    answer = everything.http.post("/v1/images/edits", files=[picture(), picture("mask")], data=fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "mask")
    assert error["message"].startswith("fal-ai/flux-2/klein/4b/edit takes no mask: fal-ai/flux-lora/inpainting and")


def test_a_mask_makes_a_named_endpoint_its_sibling_behind_masks(everything: Api, pool: ThreadPoolExecutor) -> None:
    files = [picture(), picture("mask")]
    job, answer = begun(everything, pool, "edits", files, prompt="a star", model="fal-ai/flux-lora")
    assert job.endpoint == "fal-ai/flux-lora/inpainting"
    everything.node.finish(job)
    assert answer.result().status_code == 200


def test_several_pictures_are_all_seen_or_refused(everything: Api, pool: ThreadPoolExecutor) -> None:
    files = [picture(), picture()]
    job, answer = begun(everything, pool, "edits", files, prompt="both", model="fal-ai/flux-pro/kontext")
    assert job.endpoint == "fal-ai/flux-pro/kontext/multi"
    everything.node.finish(job)
    assert answer.result().status_code == 200
    fields = {"prompt": "both", "model": "fal-ai/flux-kontext/dev"}
    error = everything.http.post("/v1/images/edits", files=files, data=fields).json()["error"]
    assert (error["param"], error["message"][:53]) == ("image", "fal-ai/flux-kontext/dev takes one picture, not 2: fal")
