"""A prompt that is written out before it is drawn, by a language model behind a real HTTP server."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.app import create_app
from server.http.expander import Expander
from server.node import Node
from server.settings import Settings, SettingsError, load
from tests.server.api_server import eventually, listening

DEV = "fal-ai/flux/dev"
TINY = {"image_size": {"width": 64, "height": 64}, "num_inference_steps": 2}


@dataclass
class Writer:
    """A chat model that repeats its prompt with an ending, or does what `does` says."""

    url: str = ""
    does: str = "write"
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def answer(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.asked.append(body)
        if self.does == "hang":
            self.released.wait(20)
        if self.does == "nest":
            return 200, Nested(b'{"choices":' + b"[" * 20_000 + b"]" * 20_000 + b"}")
        text = {
            "half": "half a \ud83d",
            "write": f'<think>hm</think>\n"{body["messages"][-1]["content"]}, by evening light"',
            "nothing": "  ",
        }
        choices = [{"message": {"role": "assistant", "content": text.get(self.does, "")}}]
        return {"fail": (500, {}), "strange": (200, {"choices": []})}.get(self.does, (200, {"choices": choices}))


@dataclass(frozen=True)
class Nested:
    """JSON that Python's own module would not write."""

    raw: bytes


@pytest.fixture(scope="module")
def writer() -> Iterator[Writer]:
    writer = Writer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, {"data": [{"id": "small-writer"}, {"id": "other"}]})

        def do_POST(self) -> None:
            writer.keys.append(self.headers.get("authorization"))
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self.reply(*writer.answer(body))

        def reply(self, status: int, body: Any) -> None:
            data = body.raw if isinstance(body, Nested) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Quietly."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        writer.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        yield writer
        writer.released.set()
        server.shutdown()
        thread.join()


def served(folder: Path, **changes: Any) -> Iterator[httpx.Client]:
    node = Node.from_settings(Settings(data_dir=folder, models=("fake:",), device="cpu", **changes))
    with listening(create_app(node)) as url, httpx.Client(base_url=url, timeout=30) as http:
        eventually(lambda: http.get("/readyz").status_code == 200, within_s=30)
        yield http


@pytest.fixture(scope="module")
def shared_http(writer: Writer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    changes = {"expander": writer.url, "expander_key": "writer-key", "expander_timeout_s": 1.0}
    yield from served(tmp_path_factory.mktemp("expansion"), **changes)


@pytest.fixture
def http(shared_http: httpx.Client, writer: Writer) -> httpx.Client:
    writer.does, writer.asked, writer.keys = "write", [], []
    return shared_http


def run(http: httpx.Client, endpoint: str = DEV, **input_: Any) -> dict[str, Any]:
    answer = http.post(f"/run/{endpoint}", json=TINY | input_)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def queued(http: httpx.Client, headers: dict[str, str] | None = None, **input_: Any) -> tuple[dict[str, Any], str]:
    """The result of a queued request and its log."""
    handle = http.post(f"/queue/{DEV}", json=TINY | input_, headers=headers).json()
    eventually(lambda: http.get(handle["status_url"]).status_code == 200, within_s=20)
    log = http.get(handle["status_url"], params={"logs": 1}).json()["logs"]
    return http.get(handle["response_url"]).json(), "\n".join(f"{line['level']} {line['message']}" for line in log)


def test_the_text_is_drawn_returned_logged_and_timed(http: httpx.Client, writer: Writer) -> None:
    result, log = queued(http, prompt="a red boat", expand_prompt=True)
    assert result["prompt"] == "a red boat, by evening light"
    assert "INFO prompt expanded: a red boat, by evening light" in log
    assert result["timings"]["prompt_expansion"] > 0
    for_operators = http.get(f"/v1/jobs/{http.get('/v1/jobs').json()['items'][0]['request_id']}").json()["logs"]
    assert "prompt expanded" in for_operators
    assert "boat" not in str(for_operators)
    (asked,) = writer.asked
    assert (asked["model"], asked["messages"][-1]) == ("small-writer", {"role": "user", "content": "a red boat"})
    assert writer.keys == ["Bearer writer-key"]


def test_what_one_tenant_asked_is_not_known_when_another_asks(writer: Writer) -> None:
    async def ask() -> list[str]:
        expander = Expander(writer.url)
        texts = [await expander.expand("a secret boat", whose=whose) for whose in ("ann", "ann", "bob")]
        await expander.aclose()
        return texts

    writer.does, writer.asked = "write", []
    assert len(set(asyncio.run(ask()))) == 1
    assert len(writer.asked) == 2


@pytest.mark.parametrize(
    ("endpoint", "name"),
    [
        (DEV, "expand_prompt"),
        (DEV, "enable_prompt_expansion"),
        ("fal-ai/flux-pro", "enhance_prompt"),
        ("fal-ai/flux-pro", "expand_prompt"),
        ("fal-ai/flux-pro/kontext/text-to-image", "enhance_prompt"),
    ],
)
def test_every_name_of_the_switch_counts(http: httpx.Client, endpoint: str, name: str) -> None:
    prompt = f"{name} of {endpoint}"
    assert run(http, endpoint, prompt=prompt, **{name: True})["prompt"] == f"{prompt}, by evening light"
    off = run(http, endpoint, prompt=prompt, **{name: False})
    assert (off["prompt"], "prompt_expansion" in off["timings"]) == (prompt, False)


def test_half_a_character_at_the_end_of_a_cut_answer_is_replaced(http: httpx.Client, writer: Writer) -> None:
    writer.does = "half"
    for number in range(6):  # more than a worker holds beyond those it has begun
        assert run(http, prompt=f"cut {number}", expand_prompt=True)["prompt"] == "half a ?"


def test_what_is_not_kept_is_not_logged(http: httpx.Client) -> None:
    _, log = queued(http, {"x-fal-store-io": "0"}, prompt="a secret boat", expand_prompt=True)
    assert "prompt expanded" in log
    assert "secret" not in log


def test_a_prompt_is_written_out_once(http: httpx.Client, writer: Writer) -> None:
    texts = {run(http, prompt="a blue boat", seed=seed, expand_prompt=True)["prompt"] for seed in range(3)}
    assert texts == {"a blue boat, by evening light"}
    assert len(writer.asked) == 1


@pytest.mark.parametrize(
    ("does", "why"),
    [
        ("fail", "it answered 500"),
        ("strange", "its answer has no text"),
        ("nothing", "its answer has no text"),
        ("nest", "its answer has no text"),
        ("hang", "no answer within 1 s"),
    ],
)
def test_a_writer_that_fails_fails_no_request(http: httpx.Client, writer: Writer, does: str, why: str) -> None:
    writer.does = does
    result, log = queued(http, prompt=f"{does}: a boat", expand_prompt=True)
    assert result["prompt"] == f"{does}: a boat"
    assert f"WARN the prompt was not expanded, and is used as written: {why}" in log
    assert writer.url not in log
    assert len(result["images"]) == 1


def test_a_start_deadline_is_kept_by_giving_up_early(http: httpx.Client, writer: Writer) -> None:
    writer.does = "hang"
    began = time.monotonic()
    result, log = queued(http, headers={"x-fal-request-timeout": "1.5"}, prompt="in haste", expand_prompt=True)
    assert result["prompt"] == "in haste", log
    assert time.monotonic() - began < 20


def test_nothing_is_asked_for_an_empty_prompt(http: httpx.Client, writer: Writer) -> None:
    assert run(http, prompt="   ", expand_prompt=True)["prompt"] == "   "
    assert writer.asked == []


def test_the_text_is_what_a_file_says_it_was_drawn_of(http: httpx.Client) -> None:
    headers = {"x-fluxserve-embed-parameters": "1"}
    result, _ = queued(http, headers=headers, prompt="a green boat", expand_prompt=True)
    assert b"a green boat, by evening light" in http.get(result["images"][0]["url"]).content


def test_without_an_expander_the_prompt_is_used_and_the_log_says_so(tmp_path: Path) -> None:
    for http in served(tmp_path):
        result, log = queued(http, prompt="a boat", expand_prompt=True)
        assert (result["prompt"], "prompt_expansion" in result["timings"]) == ("a boat", False)
        assert "WARN this server has no prompt expander" in log


@pytest.mark.parametrize("value", ["127.0.0.1:11434", "ftp://a/v1", "http://user:pass@a/v1", "http://"])
def test_an_address_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match="--expander"):
        load({"expander": value}, None)


def test_its_key_may_lie_in_a_file_and_is_never_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret-of-the-writer\n")
    settings = load({"expander_key": f"@{tmp_path / 'key'}"}, None)
    assert settings.expander_key == "secret-of-the-writer"
    assert "secret-of-the-writer" not in repr(settings)
