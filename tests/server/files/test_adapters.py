"""What requests call a LoRA, through real servers, files and the hub's own client."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from server.files import adapters as module
from server.files.adapter_store import AdapterStore
from server.files.adapters import AdapterRefusedError, Adapters
from server.files.folder_objects import FolderObjects
from server.http.outgoing import parse_networks
from tests.server.files.lora_files import lora_bytes, write_lora

LORA = lora_bytes()
NAME = f"{hashlib.sha256(LORA).hexdigest()}.safetensors"
LIMIT = 1 << 20
COMMIT = "a" * 40


class Site(BaseHTTPRequestHandler):
    """An outside server, and a hub with one repository; what it does is in the path."""

    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if self.command == "GET":
            self.asked.append(path)
        body, headers = LORA, {}
        if path == "/endless":
            body = bytes(2 * LIMIT)
        elif path == "/pickle":
            body = b"\x80\x04\x95 a pickle"
        elif path == "/slow":
            time.sleep(0.3)
        elif path.startswith("/api/models/owner/"):
            files = [{"rfilename": "style.safetensors", "size": len(LORA)}, {"rfilename": "README.md", "size": 1}]
            if "large" in path:
                files[0]["size"] = 5 * LIMIT
            body = json.dumps({"id": "owner/repo", "sha": COMMIT, "siblings": files}).encode()
        elif path.startswith("/owner/repo/resolve/"):
            headers = {"etag": '"abc"', "x-repo-commit": COMMIT}
        elif path not in ("/lora", "/lora?token=1"):
            self.send_error(404)
            return
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        if path != "/endless":
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quietly."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Clients hang up on purpose."""

    Site.asked = []
    with Quiet(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def resolve(tmp_path: Path, *paths: str, **options: object) -> list[str]:
    """Names in a store of `tmp_path`, all asked for at once."""
    networks = parse_networks(["127.0.0.0/8"])
    settings = {"max_bytes": LIMIT, "allowed": networks} | options

    async def run() -> list[str]:
        store = AdapterStore(tmp_path / "adapters", 1 << 30)
        adapters = Adapters(store, FolderObjects(tmp_path / "files"), **settings)  # type: ignore[arg-type]
        try:
            return list(await asyncio.gather(*(adapters.resolve(path) for path in paths)))
        finally:
            await adapters.aclose()

    return asyncio.run(run())


def refusal(tmp_path: Path, path: str, **options: object) -> tuple[str, str]:
    with pytest.raises(AdapterRefusedError) as caught:
        resolve(tmp_path, path, **options)
    left = {file.name for file in (tmp_path / "adapters").iterdir()}
    assert not any(name.endswith(".new") for name in left), "a refused fetch leaves nothing behind"
    return caught.value.kind, caught.value.message


def test_an_address_is_fetched_once_for_all_who_ask_at_once(tmp_path: Path, site: str) -> None:
    Site.asked.clear()
    assert resolve(tmp_path, *[f"{site}/lora"] * 5) == [NAME] * 5
    assert Site.asked == ["/lora"]
    assert (tmp_path / "adapters" / NAME).read_bytes() == LORA


def test_an_upload_of_ours_is_read_from_the_disk_whatever_host_its_address_names(tmp_path: Path) -> None:
    key = FolderObjects(tmp_path / "files").put(LORA, "application/octet-stream", "safetensors"[:8])
    assert resolve(tmp_path, f"https://v3.fal.media/files/{key}") == [NAME]


def test_an_upload_that_is_not_for_all_serves_its_tenant_alone(tmp_path: Path) -> None:
    objects = FolderObjects(tmp_path / "files")
    key = objects.put(LORA, "application/octet-stream", "bin", access="hide", tenant="alice")

    async def run() -> str:
        store = AdapterStore(tmp_path / "adapters", 1 << 30)
        adapters = Adapters(store, objects)
        url = f"https://v3.fal.media.invalid/files/{key}"
        try:
            name = await adapters.resolve(url, "alice")
            with pytest.raises(AdapterRefusedError):
                await adapters.resolve(url, "bob")  # for whom it is an address like any other
            assert await adapters.resolve(url, "alice") == name
            objects.delete(key)
            with pytest.raises(AdapterRefusedError):
                await adapters.resolve(url, "alice")  # an upload that is deleted serves nobody any more
            return name
        finally:
            await adapters.aclose()

    assert asyncio.run(run()) == NAME


def test_a_file_of_the_operators_folder_has_a_name_with_and_without_its_ending(tmp_path: Path) -> None:
    folder = tmp_path / "loras"
    folder.mkdir()
    write_lora(folder / "my style.safetensors")
    assert resolve(tmp_path, "my style", "my style.safetensors", folder=folder) == [NAME, NAME]


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", ".hidden", "sub/style", "style.pt", "", "..", "a\0b"])
def test_names_never_lead_out_of_the_folder(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "loras"
    (folder / "sub").mkdir(parents=True)
    for file in (tmp_path / "secret.safetensors", folder / ".hidden.safetensors", folder / "sub" / "style.safetensors"):
        write_lora(file)
    (folder / "style.pt").write_bytes(LORA)
    kind, message = refusal(tmp_path, path, folder=folder)
    assert kind == "value_error"
    assert "There is no adapter" in message
    assert "the name of a file that this server holds" in message


@pytest.mark.parametrize(
    ("path", "kind", "words"),
    [
        ("/missing", "file_download_error", "answered 404"),
        ("/endless", "file_too_large", "larger than 1 MiB"),
        ("/pickle", "value_error", "not a safetensors file"),
    ],
)
def test_a_bad_address_is_one_clear_error(tmp_path: Path, site: str, path: str, kind: str, words: str) -> None:
    found, message = refusal(tmp_path, site + path)
    assert found == kind
    assert words in message


def test_private_addresses_need_the_operators_leave(tmp_path: Path, site: str) -> None:
    kind, message = refusal(tmp_path, f"{site}/lora", allowed=())
    assert kind == "file_download_error"
    assert "not on the public internet" in message


def test_a_slow_server_is_given_up(tmp_path: Path, site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEADLINE_S", 0.05)
    assert "too slow" in refusal(tmp_path, f"{site}/slow")[1]


def test_a_caller_that_goes_away_leaves_the_fetch_to_the_others(tmp_path: Path, site: str) -> None:
    async def run() -> str:
        store = AdapterStore(tmp_path / "adapters", 1 << 30)
        adapters = Adapters(store, FolderObjects(tmp_path / "files"), allowed=parse_networks(["127.0.0.0/8"]))
        first = asyncio.ensure_future(adapters.resolve(f"{site}/lora"))
        second = asyncio.ensure_future(adapters.resolve(f"{site}/lora"))
        await asyncio.sleep(0)
        first.cancel()
        try:
            return await second
        finally:
            await adapters.aclose()

    assert asyncio.run(run()) == NAME


def test_a_files_page_on_the_hub_means_the_file() -> None:
    page = "https://huggingface.co/owner/repo/blob/main/style.safetensors"
    assert module.downloadable(page) == "https://huggingface.co/owner/repo/resolve/main/style.safetensors"
    for other in ("https://example.com/owner/repo/blob/main/x", "https://huggingface.co/owner/repo/resolve/main/x"):
        assert module.downloadable(other) == other


def test_hub_names_need_the_operators_leave(tmp_path: Path) -> None:
    kind, message = refusal(tmp_path, "owner/repo")
    assert kind == "value_error"
    assert "hub" not in message


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An offline hub whose cache holds owner/repo."""
    repo = tmp_path / "hub" / "models--owner--repo"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    write_lora(snapshot / "style.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return snapshot


def test_an_offline_hub_serves_what_its_cache_holds(tmp_path: Path, hub_cache: Path) -> None:
    names = ("owner/repo", "owner/repo/style.safetensors", "owner/repo/style")
    assert resolve(tmp_path, *names, uses_hub=True) == [NAME] * 3
    assert "not in this server's cache" in refusal(tmp_path, "owner/another", uses_hub=True)[1]
    assert "has no safetensors file nothing" in refusal(tmp_path, "owner/repo/nothing", uses_hub=True)[1]
    write_lora(hub_cache / "second.safetensors")
    assert "has 2 safetensors files; name one" in refusal(tmp_path, "owner/repo", uses_hub=True)[1]


def from_hub(site: str, home: Path, name: str) -> subprocess.CompletedProcess[str]:
    """Through the hub's own client, which reads its settings when it is imported."""
    code = f"from server.files.adapter_hub import file_of\nprint(file_of({name!r}, {LIMIT}))"
    environment = {**os.environ, "HF_ENDPOINT": site, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    root = Path(__file__).parents[3]
    return subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True)


def test_a_hub_that_answers_is_asked_for_sizes_first(site: str, tmp_path: Path) -> None:
    found = from_hub(site, tmp_path, "owner/repo")
    assert found.returncode == 0, found.stderr
    assert Path(found.stdout.strip()).read_bytes() == LORA
    large = from_hub(site, tmp_path, "owner/large")
    assert "HubError: style.safetensors has 5 MiB, and this server takes 1" in large.stderr
    missing = from_hub(site, tmp_path, "nobody/repo")
    assert "HubError: the hub has no nobody/repo that this server may see" in missing.stderr
