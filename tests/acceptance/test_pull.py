"""`fluxserve pull` as a process of its own against a hub on this machine: broken connections, damage, closed doors."""

from __future__ import annotations

import base64
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.acceptance.serving import COMMAND, ROOT, Server
from tests.models.hub import COMMIT, Hub
from tests.models.sdxl.folders import save_sdxl

REPO = "owner/tiny-sdxl"
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with more in it than serving reads."""
    folder = save_sdxl(tmp_path_factory.mktemp("hub") / "tiny-sdxl")
    for name in (
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "sd_xl_base_1.0.safetensors",
        "vae_1_0/model.safetensors",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"a second copy")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "README.md").write_text("a card")
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one part, larger than the pieces in which it is fetched."""
    folder = tmp_path_factory.mktemp("hub") / "large"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DConditionModel"]}))
    (folder / "unet" / "config.json").write_text("{}")
    (folder / UNET).write_bytes(os.urandom(25_000_000))
    return folder


@pytest.fixture
def hub(published: Path) -> Iterator[Hub]:
    serving = Hub(published, REPO)
    yield serving
    serving.close()


def run(home: Path, hub: Hub | None, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": ""} | environment
    given |= {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"} if hub else {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [*COMMAND, "pull", *arguments], cwd=ROOT, env=os.environ | given, capture_output=True, text=True, timeout=120
    )


def test_only_what_serving_reads_comes_and_serves_without_a_network(hub: Hub, tmp_path: Path) -> None:
    done = run(tmp_path, hub, REPO, "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["models"]
    folder = Path(row["folder"])
    assert folder.name == COMMIT
    texts = {f"{part}/model.safetensors" for part in ("text_encoder", "text_encoder_2")}
    weights = {name for name, _ in hub.downloads if not name.endswith((".json", ".txt", ".jinja"))}
    assert weights == {UNET, "vae/diffusion_pytorch_model.safetensors"} | texts
    assert (folder / UNET).read_bytes() == (hub.folder / UNET).read_bytes()
    opened = subprocess.run(
        [sys.executable, "-m", "models.examine", REPO],
        cwd=ROOT,
        env=os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert json.loads(opened.stdout.splitlines()[-1]) == {"model": REPO, "error": None}


@pytest.fixture
def large_hub(large: Path) -> Iterator[Hub]:
    serving = Hub(large, REPO)
    yield serving
    serving.close()


def test_what_arrives_with_another_checksum_is_deleted_and_fetched_again(large_hub: Hub, tmp_path: Path) -> None:
    hub = large_hub
    hub.damaged.add(UNET)
    done = run(tmp_path, hub, REPO)
    assert done.returncode == 1
    assert f"{UNET} arrived with another checksum" in done.stderr
    assert "Traceback" not in done.stderr
    hub.damaged.clear()
    again = run(tmp_path, hub, REPO)
    assert again.returncode == 0, again.stderr
    assert "is here" in again.stdout
    assert [name for name, _ in hub.downloads].count(UNET) == 2
    assert [name for name, _ in hub.downloads].count("unet/config.json") == 1


def test_a_gated_repository_says_where_to_click_and_a_broken_connection_goes_on(large_hub: Hub, tmp_path: Path) -> None:
    hub = large_hub
    hub.needs_token = "mine"
    refused = run(tmp_path, hub, REPO)
    assert refused.returncode == 1
    assert f"accept its licence at {hub.url}/{REPO}" in refused.stderr
    hub.cuts.add(UNET)
    assert run(tmp_path, hub, REPO, HF_TOKEN="mine").returncode == 0
    first, second = (asked for name, asked in hub.downloads if name == UNET)
    assert first is None
    assert second is not None
    assert int(second.removeprefix("bytes=").rstrip("-")) > 10_000_000


def test_a_folder_that_was_fetched_elsewhere_stands_for_the_hub(published: Path, tmp_path: Path) -> None:
    linked = tmp_path / "elsewhere"
    linked.mkdir()
    for entry in published.iterdir():
        (linked / entry.name).symlink_to(entry)
    done = run(tmp_path, None, REPO, "--from", str(linked))
    assert done.returncode == 0, done.stderr
    snapshots = tmp_path / "hub" / "models--owner--tiny-sdxl" / "snapshots"
    (folder,) = snapshots.iterdir()
    assert (folder / UNET).read_bytes() == (published / UNET).read_bytes()
    assert not (folder / "sd_xl_base_1.0.safetensors").exists()


def test_a_unet_of_a_file_is_not_fetched_and_a_repository_of_files_is_no_checkpoint(hub: Hub, tmp_path: Path) -> None:
    unet = tmp_path / "sdxl_lightning_4step_unet.safetensors"
    unet.write_bytes((hub.folder / UNET).read_bytes())
    done = run(tmp_path, hub, f"{REPO}+{unet}")
    assert done.returncode == 0, done.stderr
    fetched = {name for name, _ in hub.downloads}
    assert "unet/config.json" in fetched
    assert UNET not in fetched
    assert "vae/diffusion_pytorch_model.safetensors" in fetched
    files = tmp_path / "files"
    files.mkdir()
    unet.rename(files / unet.name)
    (files / "config.json").write_text("{}")
    other = Hub(files, "owner/lightning-files")
    try:
        refused = run(tmp_path, other, other.repo)
    finally:
        other.close()
    assert refused.returncode == 1
    assert "has no model_index.json" in refused.stderr.splitlines()[-1], "behind the client's own line"
    assert "hf download owner/lightning-files FILE" in refused.stderr


def test_a_pull_that_was_killed_is_finished_and_compared_by_the_next(large_hub: Hub, tmp_path: Path) -> None:
    hub, blobs = large_hub, tmp_path / "hub" / "models--owner--tiny-sdxl" / "blobs"
    hub.stalls.add(UNET)
    given = {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    killed = subprocess.Popen([*COMMAND, "pull", REPO], cwd=ROOT, env=os.environ | given)
    try:
        assert hub.stalled.wait(120)
    finally:
        killed.send_signal(signal.SIGKILL)
        assert killed.wait(30) == -signal.SIGKILL
    (left,) = blobs.glob("*.incomplete")
    before = len(hub.downloads)
    hub.stalls.clear()
    done = run(tmp_path, hub, REPO)
    assert done.returncode == 0, done.stderr
    assert hub.downloads[before:] == [(UNET, None)], "whole files are kept, the unfinished one starts anew"
    assert (blobs.parent / "snapshots" / COMMIT / UNET).read_bytes() == (hub.folder / UNET).read_bytes()
    assert not left.exists(), "the client would leave it for good"
    assert not list(blobs.parent.glob(".fluxserve-*"))


def test_a_terminal_sees_a_bar_of_bytes(large_hub: Hub, tmp_path: Path) -> None:
    given = {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "HF_ENDPOINT": large_hub.url, "HF_HUB_OFFLINE": "0"}
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 120))
    shown = bytearray()
    with subprocess.Popen(
        [*COMMAND, "pull", REPO], cwd=ROOT, env=os.environ | given | {"TERM": "xterm"}, stdout=theirs, stderr=theirs
    ) as pulling:
        os.close(theirs)
        with suppress(OSError):  # the other end is closed
            while piece := os.read(ours, 65536):
                shown += piece
    os.close(ours)
    assert pulling.returncode == 0, shown.decode()
    assert re.search(rb"25\.0M ?B? / +25\.0M ?B?", shown), bytes(shown)


def test_without_a_terminal_nothing_but_lines_is_written(large_hub: Hub, tmp_path: Path) -> None:
    done = run(tmp_path, large_hub, REPO)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\S+ is here, 0\.0 GB in [^\r\x1b\n]+\n", done.stdout)
    assert done.stderr == ""


def generate(home: Path, hub: Hub, out: Path) -> subprocess.CompletedProcess[str]:
    """The first use of a model that is not here."""
    given = {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "", "HF_ENDPOINT": hub.url}
    size = ["--size", "64x64", "--steps", "1", "--output", str(out)]
    return subprocess.run(
        [*COMMAND, "generate", "a", "--model", REPO, *size],
        cwd=ROOT,
        env=os.environ | given | {"HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_first_use_compares_what_it_fetched_and_no_later_one_does(hub: Hub, tmp_path: Path) -> None:
    hub.damaged.add(UNET)
    refused = generate(tmp_path, hub, tmp_path / "out.png")
    assert refused.returncode == 3
    assert f"{UNET} arrived with another checksum than the hub's, and was deleted" in refused.stderr
    assert not list(tmp_path.glob("out*"))
    hub.damaged.clear()
    drawn = generate(tmp_path, hub, tmp_path / "out.png")
    assert drawn.returncode == 0, drawn.stderr
    assert list(tmp_path.glob("out*"))
    fetched = [name for name, _ in hub.downloads]
    assert fetched.count(UNET) == 2
    assert fetched.count("vae/diffusion_pytorch_model.safetensors") == 1
    assert not list((tmp_path / "hub" / "models--owner--tiny-sdxl").glob(".fluxserve-*")), "nothing is left to compare"


def picture(server: Server) -> bytes:
    """The pixels of one that is drawn now."""
    body = {"prompt": "a", "seed": 1, "num_inference_steps": 2, "image_size": {"width": 64, "height": 64}}
    answer = httpx.post(f"{server.url}/run/fal-ai/playground-v25", json=body | {"sync_mode": True}, timeout=100)
    assert answer.status_code == 200, answer.text
    drawn = base64.b64decode(answer.json()["images"][0]["url"].partition(",")[2])
    return Image.open(io.BytesIO(drawn)).tobytes()


def test_a_server_fetches_on_first_use_and_starts_again_without_a_hub(hub: Hub, tmp_path: Path) -> None:
    given = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "", "HF_ENDPOINT": hub.url}
    server = Server(tmp_path / "node", environment=given | {"HF_HUB_OFFLINE": "0"}, model=REPO).start()
    try:
        server.wait_ready()
        first = picture(server)
        assert [name for name, _ in hub.downloads].count(UNET) == 1
        assert server.stop() == 0
        hub.close()
        server.environment["HF_HUB_OFFLINE"] = "1"
        server.start().wait_ready()
        assert picture(server) == first
    finally:
        server.close()


def test_without_a_network_or_a_name_it_says_so(tmp_path: Path) -> None:
    offline = run(tmp_path, None, REPO)
    assert (offline.returncode, offline.stderr.count("\n")) == (1, 1)
    assert "run `fluxserve pull" in offline.stderr
    assert run(tmp_path, None, "no-such-model").returncode == 2
    assert run(tmp_path, None, "flux-shapes").stdout == "flux-shapes needs no fetching\n"
