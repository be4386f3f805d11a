"""The Python examples, as their first lines say to start them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from examples import contact_sheet, webhook_receiver
from tests.acceptance.serving import Server
from tests.examples.conftest import EXAMPLES, KEY
from tests.server.api_server import eventually


def run(program: str, folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """An example started in a folder of its own."""
    command = [sys.executable, str(EXAMPLES / program), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100)


def test_a_batch_draws_every_line_and_tells_what_it_could_not(pointed: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a fox\n\na hen [[refuse]]\na cat\n")
    done = run("batch.py", tmp_path, pointed, "prompts.txt", "--steps", "2")
    assert done.returncode == 1, done.stderr
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["0001.jpg", "0004.jpg"]
    with Image.open(tmp_path / "pictures" / "0001.jpg") as picture:
        assert picture.size == (512, 512)
    assert "3/3" in done.stdout
    assert done.stderr.startswith("not drawn: a hen [[refuse]]: ")


def test_a_batch_goes_on_where_it_was_stopped(pointed: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a fox\na cat\n")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "0001.jpg").write_bytes(b"drawn before")
    done = run("batch.py", tmp_path, pointed, "prompts.txt", "--steps", "2")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pictures" / "0001.jpg").read_bytes() == b"drawn before"
    assert "1/1" in done.stdout


def test_a_contact_sheet_has_a_row_a_prompt_and_a_column_a_seed(pointed: dict[str, str], tmp_path: Path) -> None:
    done = run("contact_sheet.py", tmp_path, pointed, str(EXAMPLES / "prompts.txt"), "--seeds", "1,2")
    assert done.stdout.strip() == "7 prompts x 2 seeds: sheet.png", done.stderr
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (contact_sheet.MARGIN + 2 * contact_sheet.CELL, 7 * contact_sheet.CELL)
        assert sheet.getpixel((contact_sheet.MARGIN - 1, 5)) == (255, 255, 255)
        assert sheet.getpixel((contact_sheet.MARGIN + 5, 5)) != (255, 255, 255)


@contextmanager
def receiving(server: Server) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The example's receiver, and what it believed."""
    taken: list[dict[str, Any]] = []
    handler = webhook_receiver.handler(webhook_receiver.public_keys(server.url), taken.append)
    receiver = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=receiver.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{receiver.server_address[1]}/", taken
    finally:
        receiver.shutdown()
        thread.join()
        receiver.server_close()


def test_a_receiver_believes_the_server_and_nobody_else(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with receiving(server) as (address, taken):
        submitted = httpx.post(
            f"{server.url}/queue/fal-ai/flux/dev",
            params={"fal_webhook": address},
            json={"prompt": "a fox", "num_inference_steps": 2},
            headers={"authorization": f"Key {KEY}"},
        ).json()
        eventually(lambda: taken)
        (end,) = taken
        assert (end["request_id"], end["status"]) == (submitted["request_id"], "OK")
        assert httpx.get(end["payload"]["images"][0]["url"]).status_code == 200
        for headers in ({}, {"x-fal-webhook-timestamp": str(int(time.time())), "x-fal-webhook-signature": "00" * 64}):
            assert httpx.post(address, json=end, headers=headers).status_code == 401
        assert len(taken) == 1
    webhook_receiver.show(end)
    assert capsys.readouterr().out.split()[:2] == [submitted["request_id"], "OK"]
    assert not webhook_receiver.is_genuine({"x-fal-webhook-timestamp": "1"}, b"", [])
