"""Between claim and worker: what is read, what is decided from it, and where faults are reported."""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor
from PIL import Image

from models.registry import REGISTRY
from pipelines.protocol.params import GenerationParams
from server.api.endpoints import ENDPOINTS
from server.api.preparation import Preparation
from server.api.served import Served
from server.api.submission import RequestOptions, new_job
from server.files.adapter_store import AdapterStore
from server.files.adapters import Adapters
from server.files.folder_objects import FolderObjects
from server.files.inputs import Inputs
from server.files.picture_pool import PicturePool
from server.jobs.live import LiveJobs
from server.jobs.preparation import Prepared
from server.jobs.store.job import Job, JobStatus, Outcome
from server.jobs.store.memory import MemoryStore
from tests.server.files.test_decoding import packed, quarters

EVERYTHING = tuple(spec for name, spec in REGISTRY.items() if name.startswith(("FLUX.1-", "FLUX.2-klein-4B", "Depth-")))


def data_uri(width: int = 48, height: int = 32, mode: str = "RGB") -> str:
    png = packed(quarters(width, height).convert(mode), "PNG")
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


@pytest.fixture(scope="module")
def pool() -> Iterator[PicturePool]:
    made = PicturePool()
    yield made
    made.close(wait=True)


class Desk:
    """Submits to a memory store and prepares what it claims."""

    def __init__(self, folder: Path, pool: PicturePool) -> None:
        self.served = Served(EVERYTHING)
        self.live = LiveJobs()
        self.job_id = ""
        self.store = MemoryStore()
        self.objects = FolderObjects(folder / "files")
        self.pool = pool
        self.adapters = AdapterStore(folder / "adapters", 1 << 30)

    def submitted(self, endpoint: str, body: dict[str, Any]) -> Job:
        self.job_id = str(uuid.uuid4())
        new = new_job(ENDPOINTS[f"fal-ai/{endpoint}"], self.job_id, body, RequestOptions(""), self.served)
        self.store.enqueue(new)
        (job,) = self.store.claim("worker", 1, 30.0)
        return job

    def preparation(self) -> Preparation:
        inputs = Inputs(self.objects, self.pool)
        return Preparation(self.served, inputs, Adapters(self.adapters, self.objects), self.live)

    def prepare(self, endpoint: str, **body: Any) -> Prepared | Outcome:
        async def main() -> Prepared | Outcome:
            return await self.preparation()(self.submitted(endpoint, {"prompt": "a star", "seed": 7} | body))

        return asyncio.run(main())

    def params(self, endpoint: str, **body: Any) -> GenerationParams:
        prepared = self.prepare(endpoint, **body)
        assert isinstance(prepared, Prepared), prepared
        return GenerationParams.from_dict(prepared.params)

    def problems(self, endpoint: str, **body: Any) -> list[dict[str, Any]]:
        outcome = self.prepare(endpoint, **body)
        assert isinstance(outcome, Outcome)
        assert (outcome.status, outcome.http_status) == (JobStatus.FAILED, 422)
        found: list[dict[str, Any]] = outcome.body["detail"]
        return found


@pytest.fixture
def desk(tmp_path: Path, pool: PicturePool) -> Desk:
    return Desk(tmp_path, pool)


def test_a_mask_travels_as_shades_and_a_picture_as_colours(desk: Desk) -> None:
    prepared = desk.prepare("flux-pro/v1/fill", image_url=data_uri(), mask_url=data_uri(16, 16, "L"))
    assert isinstance(prepared, Prepared)
    assert [(each["width"], each["height"], each["channels"]) for each in prepared.pictures] == [
        (48, 32, 3),
        (16, 16, 1),
    ]
    assert prepared.pictures[0]["pixels"] == quarters(48, 32).tobytes()
    assert (prepared.params["width"], prepared.params["height"], prepared.params["seed"]) == (48, 32, 7)
    assert [entry["message"] for entry in desk.live.logs(desk.job_id)] == ["reading 2 pictures"]


def test_a_reworked_picture_keeps_to_the_lightning_of_its_steps(desk: Desk) -> None:
    spec = REGISTRY["random:SDXL-Lightning"]
    desk.served = Served(tuple(replace(spec, name=f"{steps} steps", distilled_steps=steps) for steps in (2, 8)))
    endpoint = "fast-lightning-sdxl/image-to-image"
    assert desk.params(endpoint, image_url=data_uri(), num_inference_steps=8).model == "8 steps"
    assert desk.params(endpoint, image_url=data_uri(), num_inference_steps=4).model == "2 steps"


def test_a_picture_of_which_a_megapixel_is_seen_travels_so_and_decides_the_size_as_it_was(desk: Desk) -> None:
    large = data_uri(1801, 1201)
    prepared = desk.prepare("flux-2/klein/4b/edit", image_urls=[large, data_uri()])
    assert isinstance(prepared, Prepared)
    seen = Flux2ImageProcessor._resize_if_exceeds_area(quarters(1801, 1201))
    first, second = prepared.pictures
    assert (first["width"], first["height"]) == seen.size
    assert first["pixels"] == seen.tobytes()
    assert (second["width"], second["height"]) == (48, 32)
    alike = desk.prepare("flux/dev/image-to-image", image_url=large)
    assert isinstance(alike, Prepared)
    assert (prepared.params["width"], prepared.params["height"]) == (alike.params["width"], alike.params["height"])
    assert alike.pictures[0]["width"] == 1801


@pytest.mark.parametrize(
    ("endpoint", "body", "size"),
    [
        ("flux/dev/image-to-image", {}, (48, 32)),
        ("flux-lora/image-to-image", {}, (48, 32)),
        ("flux-lora/image-to-image", {"image_size": "square"}, (512, 512)),
        ("flux/dev/redux", {}, (1024, 768)),
        ("flux-kontext/dev", {}, (48, 32)),
        ("flux-kontext/dev", {"resolution_mode": "auto"}, (1248, 832)),
        ("flux-kontext/dev", {"resolution_mode": "9:16"}, (752, 1392)),
        ("flux-pro/kontext", {}, (1248, 832)),
        ("flux-pro/kontext", {"aspect_ratio": "1:1"}, (1024, 1024)),
        ("flux-general/image-to-image", {}, (48, 32)),
    ],
)
def test_the_size_follows_the_picture_where_fal_says_so(
    desk: Desk, endpoint: str, body: dict[str, Any], size: tuple[int, int]
) -> None:
    params = desk.params(endpoint, image_url=data_uri(), **body)
    assert (params.width, params.height) == size


def test_a_picture_beyond_what_the_model_draws_is_shrunk_in_shape(desk: Desk) -> None:
    flat = base64.b64encode(packed(Image.new("RGB", (4000, 2000)), "PNG")).decode()
    params = desk.params("flux/dev/image-to-image", image_url=f"data:image/png;base64,{flat}")
    assert params.width * params.height <= REGISTRY["FLUX.1-dev"].max_pixels
    assert abs(params.width / params.height - 2) < 0.05


def test_every_picture_at_fault_has_an_entry_at_its_field(desk: Desk) -> None:
    gif = base64.b64encode(packed(quarters(), "GIF")).decode()
    problems = desk.problems(
        "flux-kontext-lora/inpaint",
        image_url="http://127.0.0.1/a.png",
        mask_url=f"data:image/gif;base64,{gif}",
        reference_image_url=data_uri(),
    )
    assert [(each["loc"], each["type"]) for each in problems] == [
        (["body", "image_url"], "file_download_error"),
        (["body", "mask_url"], "unsupported_image_format"),
    ]
    nested = desk.problems("flux-pro/kontext/multi", image_urls=[data_uri(), "data:image/png;base64,AAAA"])
    assert [(each["loc"], each["type"]) for each in nested] == [(["body", "image_urls", 1], "image_load_error")]


def test_an_adapter_that_is_not_here_is_a_fault_at_its_path(desk: Desk) -> None:
    problems = desk.problems("flux-lora", loras=[{"path": "no-such-style"}])
    assert [each["loc"] for each in problems] == [["body", "loras", 0, "path"]]


@pytest.mark.parametrize(
    ("endpoint", "body", "told", "field"),
    [
        ("flux-pro/v1/depth", {"control_image_url": "x"}, ("control", "picture"), ["control_image_url"]),
        ("flux-lora-depth", {"image_url": "x"}, ("control", "picture"), ["image_url"]),
        ("flux-pro/v1/fill", {"image_url": "x", "mask_url": "y"}, ("fill", "mask"), ["mask_url"]),
        ("flux-lora/inpainting", {"image_url": "x", "mask_url": "y"}, ("inpaint", "picture"), ["image_url"]),
        ("flux-pro/kontext/multi", {"image_urls": ["x", "y"]}, ("reference", "pictures", 1), ["image_urls", 1]),
        ("flux/dev/redux", {"image_url": "x"}, ("redux", "encoder"), ["image_url"]),
        ("flux-lora", {"loras": [{"path": "x"}]}, ("loras", 0, "path"), ["loras", 0, "path"]),
        ("flux/dev", {}, (), []),
    ],
)
def test_a_fault_that_the_worker_finds_is_reported_at_the_endpoints_own_field(
    desk: Desk, endpoint: str, body: dict[str, Any], told: tuple[str | int, ...], field: list[str | int]
) -> None:
    job = desk.submitted(endpoint, {"prompt": "a star"} | body)

    async def main() -> Outcome:
        return desk.preparation().fault(job, told, "it does not fit")

    outcome = asyncio.run(main())
    assert (outcome.http_status, outcome.body["detail"][0]["msg"]) == (422, "it does not fit")
    assert outcome.body["detail"][0]["loc"] == ["body", *field]


def test_what_no_checkpoint_can_do_names_the_flag() -> None:
    served = Served((REGISTRY["FLUX.1-dev"],))
    for endpoint, flag in (("flux-pro/v1/fill", "FLUX.1-Fill-dev"), ("flux/dev/redux", "FLUX.1-Redux-dev")):
        body = {"prompt": "", "image_url": "x", "mask_url": "y"}
        with pytest.raises(Exception, match=f"--model {flag}"):
            new_job(ENDPOINTS[f"fal-ai/{endpoint}"], "a", body, RequestOptions(""), served)
