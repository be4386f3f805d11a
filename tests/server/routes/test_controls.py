"""`fluxserve jobs` and its API on a served node: the queue seen, cancelled by filter, held back and moved."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from server.cli.failures import CommandError
from server.cli.main import app
from server.gateway.key_file import KeyFile, KeyScope
from server.jobs.store.sqlite import SqliteStore
from tests.server.api_node import ApiNode
from tests.server.api_server import Api, serve

KEY = "ann:secret"
Jobs = Callable[..., Any]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    store = SqliteStore(tmp_path / "jobs.db")
    with serve(ApiNode(tmp_path, store, api_keys=(KEY,))) as served:
        yield served
    store.close()


@pytest.fixture
def jobs(api: Api) -> Jobs:
    """Runs a subcommand against the server; its JSON. Raises: CommandError."""

    def run(*words: str) -> Any:
        done = CliRunner().invoke(app, ["jobs", *words, "--url", api.url, "--key", KEY, "--json"])
        if isinstance(done.exception, CommandError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return json.loads(done.output)

    return run


def submit(api: Api, tags: str = "") -> str:
    headers = {"authorization": f"Key {KEY}", "x-fal-tags": tags}
    return str(api.http.post("/queue/fal-ai/flux/dev", json={"prompt": "a fox"}, headers=headers).json()["request_id"])


def test_requests_are_listed_and_shown_without_what_they_draw(api: Api, jobs: Jobs) -> None:
    ids = [submit(api, "team=web"), submit(api)]
    listed = jobs("list")
    assert [item["request_id"] for item in listed["items"]] == ids[::-1]
    assert [item["request_id"] for item in jobs("list", "--tag", "team=web", "--status", "queued")["items"]] == ids[:1]
    shown = jobs("show", ids[1])
    assert (shown["status"], shown["queue_position"], shown["model"]) == ("queued", 1, "FLUX.1-dev")
    assert jobs("show", ids[0])["logs"] == ["tags: team=web"]
    assert "a fox" not in json.dumps([listed, shown])
    with pytest.raises(CommandError, match="No request nonsense"):
        jobs("show", "nonsense")


def test_more_than_a_page_is_listed_and_the_ended_are_deleted(api: Api, jobs: Jobs) -> None:
    ids = [submit(api) for _ in range(3)]
    assert [item["request_id"] for item in jobs("list", "--limit", "101", "--text", "FOX")["items"]] == ids[::-1]
    assert len(jobs("list", "--limit", "2")["items"]) == 2
    assert jobs("list", "--text", "hound")["items"] == jobs("list", "--until", "2020-01-01")["items"] == []
    with pytest.raises(CommandError, match="cancel it first"):
        jobs("delete", ids[0])
    jobs("cancel", "--all")
    assert jobs("delete", ids[0]) == {"request_id": ids[0], "cdn_delete_results": []}
    assert [item["request_id"] for item in jobs("list")["items"]] == [ids[2], ids[1]]


def test_many_are_cancelled_by_a_tag_and_the_rest_stay(api: Api, jobs: Jobs) -> None:
    running = submit(api, "team=web")
    assert api.node.claim().id == running
    waiting = [submit(api, "team=web") for _ in range(3)]
    other = submit(api, "team=app")
    assert jobs("cancel", "--tag", "team=web") == {"cancelled": 3, "requested": 1}
    assert [jobs("show", job_id)["status"] for job_id in [*waiting, running, other]] == [
        "cancelled", "cancelled", "cancelled", "running", "queued",
    ]  # fmt: skip
    assert jobs("cancel", "--tag", "team=web") == {"cancelled": 0, "requested": 0}
    assert jobs("cancel", other) == {"cancelled": 1, "requested": 0}


def test_more_than_one_call_takes_are_cancelled_all_the_same(
    api: Api, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.routes.system.controls.AT_ONCE", 2)
    for _ in range(5):
        submit(api)
    assert jobs("cancel", "--all") == {"cancelled": 5, "requested": 0}


@pytest.mark.parametrize("flag", ["--model", "--of-key"])
def test_a_model_or_a_key_is_held_back_until_it_is_resumed(api: Api, jobs: Jobs, flag: str) -> None:
    job_id = submit(api)
    name = {"--model": "FLUX.1-dev", "--of-key": jobs("show", job_id)["auth_method"]}[flag]
    jobs("pause", flag, name)
    assert [held["name"] for held in jobs("list")["paused"]] == [name]
    assert api.node.store.claim("w1", 1, 30.0) == []
    assert jobs("resume", flag, name)["paused"] is False
    assert api.node.claim().id == job_id
    with pytest.raises(CommandError, match="is not paused"):
        jobs("resume", flag, name)


def test_a_request_is_moved_to_the_front(api: Api, jobs: Jobs) -> None:
    first, second = submit(api), submit(api)
    assert jobs("prioritise", second)["queue_position"] == 0
    assert jobs("show", first)["queue_position"] == 1
    api.node.claim()
    with pytest.raises(CommandError, match="waits here"):
        jobs("prioritise", second)


def test_nothing_is_cancelled_or_held_without_saying_what(api: Api, jobs: Jobs) -> None:
    submit(api)
    with pytest.raises(CommandError, match="say which"):
        jobs("cancel")
    with pytest.raises(CommandError, match="--model and --of-key"):
        jobs("pause")
    answer = api.http.post("/v1/jobs/cancel", json={}, headers={"authorization": f"Key {KEY}"})
    assert answer.status_code == 400
    unknown = api.http.post("/v1/jobs/cancel", json={"tags": "x"}, headers={"authorization": f"Key {KEY}"})
    assert unknown.status_code == 400


def test_only_the_operators_key_may(api: Api, tmp_path: Path) -> None:
    key, _ = KeyFile(tmp_path / "keys.json").issue("app", None, [KeyScope.RUN, KeyScope.QUEUE, KeyScope.FILES])
    for method, path in (("GET", "/v1/jobs"), ("POST", "/v1/jobs/cancel"), ("PUT", "/v1/pauses/model/x")):
        answer = api.http.request(method, path, headers={"authorization": f"Key {key}"})
        assert answer.status_code == 403, path


def test_people_read_lines(api: Api) -> None:
    job_id = submit(api, "team=web")
    for words in (["list"], ["show", job_id], ["pause", "--model", "m"], ["list"], ["cancel", "--all"]):
        done = CliRunner().invoke(app, ["jobs", *words, "--url", api.url, "--key", KEY])
        assert done.exit_code == 0, done.output
        assert done.output.strip()
        assert "{" not in done.output


def test_what_a_request_lacks_has_no_line(api: Api) -> None:
    job_id = submit(api)
    shown = CliRunner().invoke(app, ["jobs", "show", job_id, "--url", api.url, "--key", KEY]).output.splitlines()
    assert "logs" in shown
    assert not [line for line in shown if line.startswith(("tags", "output"))]
