"""Two real servers: what one was asked by real clients is recorded in front of it and asked again of the other."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer

from server.cli.failures import CommandError
from server.cli.record import record
from server.cli.replay import replay
from server.shadow.recording import Entry, Recording
from tests.acceptance.official import CLIENTS
from tests.acceptance.serving import COMMAND, ROOT, Server, clean_environment
from tests.ports import free_port
from tests.server.api_server import eventually

KEY = "shadow:very-secret"
OPTIONS: dict[str, Any] = {"key": None, "at_once": 4, "max_bits": None, "page": None, "yes": False, "as_json": False}
TINY = {"image_size": {"width": 64, "height": 64}, "num_inference_steps": 2}


@dataclass
class Recorder:
    """A running `fluxserve record`."""

    process: subprocess.Popen[str]
    folder: Path
    url: str
    setups: dict[str, Any]

    def entries(self) -> list[Entry]:
        """What it has kept so far."""
        return Recording(self.folder).entries() if (self.folder / "requests.jsonl").exists() else []

    def until(self, count: int) -> list[Entry]:
        """Wait for so many entries."""
        eventually(lambda: len(self.entries()) >= count, within_s=60)
        return self.entries()


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """What is recorded: a server behind a key."""
    yield from _server(tmp_path_factory.mktemp("upstream"), FLUXSERVE_API_KEYS=KEY)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """What is asked afterwards."""
    yield from _server(tmp_path_factory.mktemp("other"))


def _server(folder: Path, **environment: str) -> Iterator[Server]:
    server = Server(folder, environment=environment, model="fake:step_ms=2").start()
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def recorder(upstream: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorder]:
    """In front of `upstream`."""
    folder = tmp_path_factory.mktemp("recorder")
    port, tls_port = free_port(), free_port()
    command = [*COMMAND, "record", upstream.url, "--out", str(folder / "recording"), "--data-dir", str(folder)]
    command += ["--port", str(port), "--tls-port", str(tls_port)]
    with (folder / "output.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, text=True, env=clean_environment(), cwd=folder)
    url = f"http://127.0.0.1:{port}"
    eventually(lambda: "fal.config" in (folder / "output.log").read_text(), within_s=60)
    base, bundle = f"127.0.0.1:{tls_port}", str(folder / "tls" / "ca-bundle.pem")
    python = {"FAL_RUN_HOST": f"{base}/run", "FAL_QUEUE_RUN_HOST": f"{base}/queue", "SSL_CERT_FILE": bundle}
    shown = (folder / "output.log").read_text()
    assert all(f"export {name}={value}" in shown for name, value in python.items())
    js = {"credentials": KEY, "proxyUrl": {"url": f"{url}/api/fal/proxy", "when": "always"}}
    try:
        yield Recorder(process, folder / "recording", url, {"python": python | {"FAL_KEY": KEY}, "js": js})
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert "Traceback" not in (folder / "output.log").read_text()


def post(recorder: Recorder, path: str, **body: Any) -> httpx.Response:
    """A call as a program makes it."""
    return httpx.post(f"{recorder.url}{path}", json=body, headers={"authorization": f"Key {KEY}"}, timeout=60)


@pytest.fixture(scope="module")
def recorded(recorder: Recorder, upstream: Server) -> list[Entry]:
    """Each client's queue, a run, a stream, a picture that was uploaded, and two that end badly."""
    for name in ("python", "node"):
        if CLIENTS[name].why_not() is None:
            process = CLIENTS[name].start_with(
                recorder.setups[CLIENTS[name].setup_name], "queue", "fal-ai/flux/dev", {"prompt": f"by {name}", **TINY}
            )
            out, err = process.communicate(timeout=90)
            assert process.returncode == 0, out + err
    assert post(recorder, "/run/fal-ai/flux/schnell", prompt="run", **TINY).status_code == 200
    streamed = post(recorder, "/run/fal-ai/flux/dev/stream", prompt="stream", **TINY)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    uploaded = post(recorder, "/rest/storage/upload/initiate", content_type="image/png", file_name="a.png").json()
    source = httpx.get(post(recorder, "/run/fal-ai/flux/dev", prompt="source", **TINY).json()["images"][0]["url"])
    httpx.put(uploaded["upload_url"], content=source.content, headers={"content-type": "image/png"}).raise_for_status()
    edited = post(
        recorder, "/queue/fal-ai/flux/dev/image-to-image", prompt="edit", image_url=uploaded["file_url"], strength=0.5
    )
    assert edited.status_code == 200
    assert edited.json()["status_url"].startswith(f"{recorder.url}/queue/")
    assert post(recorder, "/queue/fal-ai/flux/dev", prompt="bad [[fail]]", **TINY).status_code == 200
    assert post(recorder, "/run/fal-ai/flux/dev", prompt="bad", num_inference_steps=0).status_code == 422
    return recorder.until(8 if CLIENTS["node"].why_not() is None else 7)


def test_every_request_is_kept_with_its_end_and_its_pictures(recorded: list[Entry], recorder: Recorder) -> None:
    ends = {entry.input["prompt"]: entry for entry in recorded}
    assert {"run", "stream", "source", "edit", "bad", "bad [[fail]]", "by python"} <= set(ends)
    assert [ends[prompt].mode for prompt in ("by python", "run", "stream")] == ["queue", "run", "stream"]
    assert [ends[prompt].status for prompt in ("edit", "bad", "bad [[fail]]")] == [200, 422, 500]
    recording = Recording(recorder.folder)
    for entry in recorded:
        if entry.is_good:
            content, content_type = recording.file(entry.answer["images"][0]["url"])
            assert (content[:2], content_type) == (b"\xff\xd8", "image/jpeg")
            assert entry.inference is not None
    assert recording.file(ends["edit"].input["image_url"])[1] in ("image/jpeg", "image/png")


def test_no_key_is_kept(recorded: list[Entry], recorder: Recorder) -> None:
    assert recorded
    for file in recorder.folder.rglob("*"):
        assert b"very-secret" not in (file.read_bytes() if file.is_file() else b"")


def test_what_cannot_be_written_is_told_and_passed_on(recorder: Recorder, recorded: list[Entry]) -> None:
    lines, aside = recorder.folder / "requests.jsonl", recorder.folder / "aside"
    lines.rename(aside)
    lines.mkdir()
    try:
        assert post(recorder, "/run/fal-ai/flux/schnell", prompt="lost", **TINY).status_code == 200
        log = recorder.folder.parent / "output.log"
        eventually(lambda: "a request was not recorded: Is a directory" in log.read_text(), within_s=30)
    finally:
        lines.rmdir()
        aside.rename(lines)
    assert recorder.entries() == recorded


def test_another_page_in_a_browser_is_refused(recorder: Recorder) -> None:
    headers = {"origin": "http://evil.example", "content-type": "text/plain"}
    assert httpx.post(f"{recorder.url}/run/fal-ai/flux/dev", headers=headers, content="{}").status_code == 403


def test_only_fals_areas_are_passed_on(recorder: Recorder) -> None:
    answer = httpx.get(f"{recorder.url}/health")
    assert answer.status_code == 404
    assert "fluxserve record passes on" in answer.json()["detail"]


def replayed(recorder: Recorder, server: Server, *arguments: str) -> tuple[int, str]:
    """(exit status, what was printed)."""
    command = [*COMMAND, "replay", str(recorder.folder), "--against", server.url, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=clean_environment(), cwd=ROOT)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_the_same_server_breaks_nothing(
    recorded: list[Entry], recorder: Recorder, upstream: Server, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    code, out = replayed(recorder, upstream, "--key", KEY, "--json", "--at-once", "4", "--html", str(page))
    report = json.loads(out)
    assert (code, report["ok"]) == (0, True), out
    assert [request["endpoint"] for request in report["requests"]] == [entry.endpoint for entry in recorded]
    assert all(first == second for first, second in (request["status"] for request in report["requests"]))
    assert all(pair["bits"] is not None for request in report["requests"] for pair in request["pictures"])
    assert page.read_text().count("data:image/jpeg") == 2 * sum(entry.is_good for entry in recorded)
    assert KEY not in page.read_text()


def test_a_server_that_answers_otherwise_breaks_what_it_says(
    recorded: list[Entry], recorder: Recorder, other: Server, upstream: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as caught:
        replay(recorder.folder, against=upstream.url, **OPTIONS)  # without its key
    assert caught.value.exit_code == 1
    assert "ended with 401, was 200" in capsys.readouterr().out
    replay(recorder.folder, against=other.url, **OPTIONS)
    *lines, last = capsys.readouterr().out.splitlines()
    assert len(lines) == len(recorded)
    assert last.startswith(f"{len(recorded)} requests, 0 would break a program; median ")
    # No seed was named, so these are other pictures, of the same endpoint and size.
    assert any(float(colour) > 1 for colour in re.findall(r"colour ([0-9.]+)", "".join(lines)))


@pytest.mark.parametrize(
    ("folder", "against", "word"),
    [
        ("nowhere", "http://127.0.0.1:9", "is no recording"),
        ("", "ftp://x", "is no address"),
        ("", "http://", "address"),
    ],
)
def test_wrong_usage_is_told(tmp_path: Path, folder: str, against: str, word: str) -> None:
    with pytest.raises(CommandError, match=word) as caught:
        replay(tmp_path / folder, against=against, **OPTIONS)
    assert caught.value.code == 2


def test_what_would_fail_at_the_end_is_refused_at_the_start(
    tmp_path: Path, recorder: Recorder, recorded: list[Entry]
) -> None:
    page = tmp_path / "nowhere" / "report.html"
    with pytest.raises(CommandError, match=r"--html .*folder that is there"):
        replay(recorder.folder, against="http://127.0.0.1:9", **OPTIONS | {"page": page})
    (tmp_path / "requests.jsonl").touch()
    with pytest.raises(CommandError, match="holds no request"):
        replay(tmp_path, against="http://127.0.0.1:9", **OPTIONS)
    with pytest.raises(CommandError, match="cannot be the folder of a recording") as caught:
        record("http://127.0.0.1:9", out=tmp_path / "requests.jsonl")
    assert caught.value.code == 2


def test_a_server_elsewhere_is_asked_only_with_leave(recorder: Recorder, recorded: list[Entry]) -> None:
    with pytest.raises(CommandError, match=f"asks fal.run for {len(recorded)} requests.*--yes"):
        replay(recorder.folder, against="https://fal.run", **OPTIONS)
