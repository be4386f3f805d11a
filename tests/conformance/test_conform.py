"""The cases of `fluxserve conform`, asked of our own server; and of one that does not keep them."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from server.cli import main as command
from server.conform.areas import Areas
from server.conform.cases import CASES, Case
from server.conform.report import NUMBERS, pictures, verdict
from server.conform.subject import Subject
from server.conform.unasked import UNASKED
from tests.conformance.conftest import KEY
from tests.conformance.scripted import DEV, TINY, Scripted

BY_CHANCE = {42, 56, 63, 64}
"""What is only seen if the request is still in the right state when it is looked for."""
ONLY_HERE = {11, 13, 19, 29, 60, 90, 94}
"""Numbers that no other test of the suite proves."""


@pytest.fixture(scope="module")
def subject(shared_protected: Scripted) -> Iterator[Subject]:
    """The server with a key; what its cases share is drawn once."""
    input_ = {"prompt": "a fox", **TINY}
    with Subject(Areas.of(shared_protected.url), DEV, KEY, input_, f"{DEV}/image-to-image") as subject:
        yield subject


def cases() -> list[Any]:
    marks = {number: [pytest.mark.case(number)] for number in ONLY_HERE}
    return [pytest.param(case, id=str(number), marks=marks.get(number, [])) for number, case in sorted(CASES.items())]


@pytest.mark.parametrize("case", cases())
def test_our_server_keeps_the_case(subject: Subject, case: Case) -> None:
    found = verdict(case, subject)
    if case.number not in BY_CHANCE or found.outcome == "differs":
        assert found.outcome == "holds", found.line


def test_every_number_is_a_case_or_has_its_reason() -> None:
    assert CASES.keys() | UNASKED.keys() == set(NUMBERS)
    assert not CASES.keys() & UNASKED.keys()


class Careless(BaseHTTPRequestHandler):
    """A server of two lines: every request is complete, unknown ones too, and errors are text."""

    protocol_version = "HTTP/1.1"
    calls: list[str] = []  # noqa: RUF012 - one server a test

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.calls.append(self.path)
        image = {"url": "http://127.0.0.1/a.png", "width": 64, "height": 64}
        body = json.dumps({"status": "COMPLETED", "request_id": "one", "images": [image]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_OPTIONS = do_DELETE = do_PATCH = answer

    def log_message(self, *_: object) -> None:
        """Quietly."""


@pytest.fixture
def careless() -> Iterator[str]:
    Careless.calls = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Careless) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class Command:
    """`fluxserve conform` in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit status, stdout and stderr."""
        self._monkeypatch.setattr(sys, "argv", ["fluxserve", "conform", *arguments])
        code = 0
        try:
            command.main()
        except SystemExit as exc:
            code = int(exc.code or 0)
        return code, *self._capsys.readouterr()


@pytest.fixture
def conform(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.delenv("FAL_KEY", raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # nobody to be asked
    return Command(monkeypatch, capsys)


def test_a_careless_server_is_told_what_it_does_by_number(conform: Command, careless: str, tmp_path: Path) -> None:
    page = tmp_path / "report.md"
    code, out, err = conform(careless, "--markdown", str(page), "--only", "26,28,30,41,47,62,65")
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["26", "28", "30", "41", "47", "62", "65"]
    assert lines[0].split()[1:3] == ["not", "asked"]
    assert lines[4] == f" 47  DIFFERS    an unknown request is 404: GET {careless}/queue/fal-ai/flux/requests/" + (
        "00000000-0000-4000-8000-000000000000/status answered 200, wanted 404"
    )
    assert lines[5].split()[1] == "holds"
    assert lines[-1] == "2 hold, 4 differ, 1 were not asked, of 7"
    assert "| 47 | DIFFERS | an unknown request is 404 |" in page.read_text()


def test_a_budget_of_nothing_draws_nothing(conform: Command, shared_protected: Scripted) -> None:
    before = shared_protected.ends("completed")
    code, out, _ = conform(
        shared_protected.url, "--endpoint", DEV, "--key", KEY, "--budget", "0", "--json", "--only", "1-85"
    )
    report = json.loads(out)
    assert code == 0, [case for case in report["cases"] if case["outcome"] == "differs"]
    assert [case["number"] for case in report["cases"]] == list(range(1, 86))
    assert report["counts"]["holds"] > 20
    assert shared_protected.ends("completed") == before
    told = {case["number"]: case["why"] for case in report["cases"]}
    assert told[30] == "it draws 1, and 0 pictures are left"


def test_a_server_elsewhere_is_not_asked_for_pictures_unasked(conform: Command, careless: str) -> None:
    code, out, err = conform("http://192.0.2.1", "--queue-url", careless)
    assert (code, out) == (2, "")
    assert f"for up to {pictures(NUMBERS)} pictures" in err
    assert "--budget" in err
    assert Careless.calls == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["http://127.0.0.1:9"], 3, "does not answer"),
        (["127.0.0.1:8000"], 2, "http://"),
        (["http://127.0.0.1:9", "--only", "0,111"], 2, "1 to 110"),
        (["http://127.0.0.1:9", "--only", "x"], 2, "30,41-50"),
        (["http://127.0.0.1:9", "--input", "[1]"], 2, "--input"),
        (["http://[::1"], 2, "is no address"),
        (["http://127.0.0.1:9", "--queue-url", "https:///x"], 2, "is no address"),
        (["http://127.0.0.1:9", "--ca", __file__], 2, "--ca"),
        (["http://127.0.0.1:9", "--markdown", "/no/such/folder/page.md"], 2, "--markdown"),
        (["http://127.0.0.1:9", "--key", "schlüssel"], 2, "--key"),
    ],
)
def test_what_cannot_be_asked_is_said_in_a_sentence(
    conform: Command, arguments: list[str], code: int, words: str
) -> None:
    told = conform(*arguments)
    assert told[0] == code
    assert words in told[2]
    assert told[2].count("\n") == 1


def test_a_wrong_key_is_said_before_anything_is_asked(conform: Command, shared_protected: Scripted) -> None:
    code, _, err = conform(shared_protected.url, "--endpoint", DEV)
    assert code == 2
    assert "--key" in err
