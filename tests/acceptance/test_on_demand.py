"""`serve --models-on-demand` as a process: what a request may have loaded, what it may not, what no start promises."""

from __future__ import annotations

import base64
import io
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.acceptance.serving import COMMAND, ROOT, Server, clean_environment

KLEIN, BASE = "fal-ai/flux-2/klein/4b", "fal-ai/flux-2/klein/4b/base"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One model loaded, one that a request may have loaded; of those that are known by name all others may not."""
    allowed = ("--models-on-demand", "random:tiny-klein")
    serving = Server(tmp_path_factory.mktemp("node"), allowed, model="random:tiny").start()
    try:
        serving.wait_ready()
        yield serving
    finally:
        serving.close()


def ask(server: Server, endpoint: str) -> httpx.Response:
    size = {"width": 64, "height": 64}
    body = {"prompt": "a fox", "image_size": size, "num_inference_steps": 4, "seed": 1, "sync_mode": True}
    return httpx.post(f"{server.url}/run/{endpoint}", json=body | {"output_format": "png"}, timeout=100)


def drawn(answer: httpx.Response) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(answer.json()["images"][0]["url"].partition(",")[2])))


def listed(server: Server) -> dict[str, Any]:
    rows = httpx.get(f"{server.url}/v1/models?limit=200").json()["models"]
    return {row["endpoint_id"]: row["metadata"] for row in rows}


def test_the_first_request_has_an_allowed_model_loaded_and_the_next_draws_at_once(server: Server) -> None:
    row = listed(server)[KLEIN]
    assert (row["status"], row["served_by"], row["is_on_demand"]) == ("active", "random:tiny-klein", True)
    first, second = ask(server, KLEIN), ask(server, KLEIN)
    assert (first.status_code, second.status_code) == (200, 200), first.text
    pictures = [drawn(answer) for answer in (first, second)]
    assert pictures[0].size == (64, 64)
    assert pictures[0].tobytes() == pictures[1].tobytes()
    assert ask(server, "fal-ai/flux/dev").status_code == 200, "the one that was loaded at the start draws beside it"


def test_one_that_is_not_allowed_is_refused_in_one_sentence(server: Server) -> None:
    refused = ask(server, BASE)
    assert refused.status_code == 404
    sentence = (
        "No checkpoint of this server can do that: it must be started with --model FLUX.2-klein-base-4B, "
        "or with --models-on-demand FLUX.2-klein-base-4B to have requests load it"
    )
    assert refused.json()["detail"] == sentence
    row = listed(server)[BASE]
    assert (row["status"], row["reason"]) == ("unavailable", sentence)


def test_a_name_that_is_not_here_is_refused_at_the_start(tmp_path: Path) -> None:
    arguments = ("--model", "random:tiny", "--models-on-demand", "owner/tiny", "--data-dir", str(tmp_path / "data"))
    done = subprocess.run(
        [*COMMAND, "serve", *arguments],
        cwd=ROOT,
        env=clean_environment() | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 3
    assert "run `fluxserve pull owner/tiny` first, or add --fetch-on-demand to let a request" in done.stderr
    assert "Traceback" not in done.stderr
