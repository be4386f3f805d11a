"""Labels of a request from its header to its row and its log, in every area that draws."""

from __future__ import annotations

from pathlib import Path

from server.jobs.store.sqlite import SqliteStore
from tests.server.api_node import ApiNode
from tests.server.api_server import serve

TAGS = {"authorization": "Key ann:secret", "x-fal-tags": "team=web, user=7"}


def test_tags_and_key_are_stored_with_the_request_and_stand_in_its_log(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "jobs.db")
    with serve(ApiNode(tmp_path, store, api_keys=("ann:secret",))) as api:
        answer = api.http.post("/queue/fal-ai/flux/dev", json={"prompt": "x"}, headers=TAGS).json()
        job = store.get(answer["request_id"])
        assert job is not None
        assert (job.tags, job.key_id) == ({"team": "web", "user": "7"}, job.tenant)
        api.node.finish(api.node.claim())
        status = api.http.get(answer["status_url"], params={"logs": 1}, headers=TAGS).json()
        assert [entry["message"] for entry in status["logs"]] == ["tags: team=web, user=7"]
    store.close()


def test_a_rejected_request_keeps_its_tags(tmp_path: Path) -> None:
    with serve(ApiNode(tmp_path, api_keys=("ann:secret",))) as api:
        answer = api.http.post("/queue/fal-ai/flux/dev", json={}, headers=TAGS).json()
        job = api.node.store.get(answer["request_id"])
        assert job is not None
        assert job.status.is_finished
        assert job.tags == {"team": "web", "user": "7"}
