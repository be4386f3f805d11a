"""What several nodes over one database promise together, with real processes and a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.cluster.cluster import SUBMIT, Cluster, ClusterNode
from tests.server.api_server import eventually
from tests.server.postgres import the_server

pytestmark = pytest.mark.cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path, the_server().schema())
    yield made
    made.close()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, ClusterNode, ClusterNode]]:
    """One that draws, and one that takes no jobs, a minute ahead."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), the_server().schema())
    drawing, other = cluster.start(), cluster.start({"CLUSTER_CLOCK_S": "60"})
    other.rest()
    yield cluster, drawing, other
    cluster.close()


Two = tuple[Cluster, ClusterNode, ClusterNode]


def test_lines_and_steps_are_told_by_a_node_that_does_not_draw(two: Two) -> None:
    cluster, _, other = two
    job_id = other.submit("wait told")
    eventually(lambda: {"started", "step 1/3"} <= set(other.logs(job_id)), within_s=20)
    assert other.job(job_id)["status"] == "running"
    cluster.open("told")
    ended = other.until_ended(job_id)
    assert [line for line in ended["logs"] if line.startswith("step")] == ["step 1/3", "step 2/3", "step 3/3"]
    # The operator's view reads the row; what callers ask is told of it a moment later.
    eventually(lambda: other.result(job_id).status_code == 200)
    (image,) = other.result(job_id).json()["images"]
    assert other.http.get(image["url"]).status_code == 200


def test_a_stream_shows_steps_of_another_node_and_the_end(two: Two) -> None:
    cluster, _, other = two
    job_id = other.submit("wait streamed")
    url = f"{SUBMIT.rpartition('/')[0]}/requests/{job_id}/status/stream"
    seen = ""
    with other.http.stream("GET", url, params={"logs": "1"}) as stream:
        for text in stream.iter_text():
            seen += text
            if "step 1/3" in seen:
                cluster.open("streamed")
    assert "step 3/3" in seen
    assert "COMPLETED" in seen


def test_who_waits_on_an_open_connection_is_answered_by_another_nodes_worker(two: Two) -> None:
    _, _, other = two
    answer = other.http.post("/run/fal-ai/flux/dev", json={"prompt": "a fox"})
    assert answer.status_code == 200, answer.text


def test_a_cancel_reaches_the_node_that_draws(two: Two) -> None:
    _, _, other = two
    job_id = other.submit("wait cancelled")
    other.until_begun(job_id)
    assert other.http.put(f"{SUBMIT.rpartition('/')[0]}/requests/{job_id}/cancel").status_code == 202
    assert other.until_ended(job_id)["status"] == "cancelled"


def test_clocks_a_minute_apart_end_nothing_early(two: Two) -> None:
    _, drawing, other = two
    limited = {"x-fal-request-timeout": "20"}
    ids = [node.submit(headers=limited) for node in (drawing, other) for _ in range(3)]
    assert [other.until_ended(job_id)["status"] for job_id in ids] == ["completed"] * 6
    assert [drawing.job(job_id)["attempts"] for job_id in ids] == [1] * 6


def test_every_node_shows_all_nodes(two: Two) -> None:
    _, drawing, other = two
    eventually(lambda: len(drawing.http.get("/health").json()["nodes"]) == 2)
    states = {node["name"]: node["state"] for node in other.http.get("/health").json()["nodes"]}
    assert states == {drawing.name(): "ready", other.name(): "drained"}


def test_what_a_node_does_after_its_lease_has_ended_changes_nothing(cluster: Cluster) -> None:
    cluster.environment = {"CLUSTER_LEASE_S": "2"}
    cut_off, other = cluster.start(), cluster.start()
    other.rest()
    job_id = cut_off.submit("wait both")
    cut_off.until_begun(job_id)
    cut_off.freeze()
    other.work()
    other.until_begun(job_id, on=other)
    cluster.open("both")
    ended = other.until_ended(job_id)
    eventually(lambda: other.result(job_id).status_code == 200)
    picture = _picture(other, job_id)
    cut_off.thaw()
    eventually(lambda: "came too late" in (cut_off.folder / "node.log").read_text(), within_s=30)
    assert (ended["status"], ended["attempts"]) == ("completed", 1), "a node's end is no attempt of the request"
    assert _picture(cut_off, job_id) == _picture(other, job_id) == picture
    assert cut_off.job(job_id)["status"] == "completed"
    assert cut_off.until_ended(cut_off.submit())["status"] == "completed"


def test_a_machine_that_goes_gives_its_requests_to_the_others(cluster: Cluster) -> None:
    cluster.environment = {"CLUSTER_LEASE_S": "2"}
    gone, other = cluster.start(), cluster.start()
    other.rest()
    ids = [gone.submit("wait gone"), gone.submit("hold gone")]
    gone.until_begun(ids[0])
    gone.kill()
    cluster.open("gone")
    other.work()
    ended = [other.until_ended(job_id) for job_id in ids]
    assert [job["status"] for job in ended] == ["completed"] * 2


def test_upgrading_node_by_node_fails_nobody(cluster: Cluster) -> None:
    """The old one is drained and stopped while callers wait on open connections of both."""
    old, new = cluster.start(), cluster.start()
    with ThreadPoolExecutor(8) as callers:
        calls = [callers.submit(_call, node.http) for node in (old, new) for _ in range(4)]
        _stop_gently(old, new)
        assert {call.result() for call in calls} == {200}


def _call(http: httpx.Client) -> int:
    return http.post("/run/fal-ai/flux/dev", json={"prompt": "a fox", "num_inference_steps": 20}).status_code


def _stop_gently(old: ClusterNode, new: ClusterNode) -> None:
    name = old.name()

    def rest() -> object:
        return {node["name"]: node["rest"] for node in new.http.get("/v1/nodes").json()["nodes"]}.get(name, "gone")

    old.rest()
    eventually(lambda: rest() == "drained", within_s=30)
    old.process.terminate()
    assert old.process.wait(20) == 0
    eventually(lambda: rest() == "gone")


def _picture(node: ClusterNode, job_id: str) -> object:
    (image,) = node.result(job_id).json()["images"]
    return image["file_name"]
