"""The database goes away, and comes back or is replaced: nothing that was acknowledged is lost or ends twice."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from copy import copy
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.cluster.cluster import SUBMIT, Cluster, ClusterNode
from tests.ports import free_port
from tests.server.api_server import eventually
from tests.server.postgres import PostgresServer, programs

pytestmark = pytest.mark.cluster


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    found = programs()
    if found is None:
        pytest.skip("no PostgreSQL to start")
    made = PostgresServer(found)
    yield made
    made.remove()


@pytest.fixture
def cluster(tmp_path: Path, server: PostgresServer) -> Iterator[Cluster]:
    made = Cluster(tmp_path, server.address)
    yield made
    made.close()


def submitted(node: ClusterNode) -> httpx.Response:
    return node.http.post(SUBMIT, json={"prompt": "a fox", "num_inference_steps": 3})


def standby_of(server: PostgresServer, folder: Path) -> PostgresServer:
    """A second server that follows, without which the first acknowledges nothing from now on."""
    standby = copy(server)
    standby.folder, standby._process, standby.port = folder, None, free_port()
    if standby._as:
        os.chown(folder, standby._as["user"], standby._as["group"])
    standby._run("pg_basebackup", "-d", server.address, "-D", str(standby.data), "-R", "-c", "fast")
    standby.start()
    with psycopg.connect(server.address, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        connection.execute("SELECT pg_reload_conf()")
    return standby


def test_a_database_that_is_killed_and_back_loses_nothing(cluster: Cluster, server: PostgresServer) -> None:
    drawing, other = cluster.start(), cluster.start()
    other.rest()
    running, ahead = drawing.submit("wait away"), drawing.submit("hold ahead")
    drawing.until_begun(running)
    server.kill()
    eventually(lambda: submitted(other).status_code == 503, within_s=20)
    refused = submitted(other)
    assert (refused.headers["x-fal-retryable"], int(refused.headers["retry-after"]) > 0) == ("true", True)
    assert {node.http.get("/readyz").status_code for node in (drawing, other)} == {503}
    cluster.open("away")  # drawn while its end cannot be stored
    eventually(lambda: running in cluster.ended_runs(), within_s=20)
    server.start()
    cluster.open("ahead")
    ends = [other.until_ended(job_id) for job_id in (running, ahead)]
    assert [(end["status"], end["attempts"]) for end in ends] == [("completed", 1)] * 2
    assert cluster.ended_runs().count(running) == 1, "and not drawn again"
    eventually(lambda: drawing.http.get("/readyz").status_code == 200, within_s=20)
    assert other.until_ended(other.submit())["status"] == "completed"


@pytest.mark.slow
def test_a_node_ends_and_loses_nothing_although_the_database_hangs(cluster: Cluster, server: PostgresServer) -> None:
    cluster.environment = {"CLUSTER_LEASE_S": "2"}
    node = cluster.start()
    running = node.submit("wait hung")
    node.until_begun(running)
    with server.frozen():
        cluster.open("hung")
        eventually(lambda: running in cluster.ended_runs(), within_s=20)
        node.process.terminate()
        assert node.process.wait(60) == 0
    assert cluster.start().until_ended(running)["status"] == "completed"


@pytest.mark.slow
def test_nodes_follow_a_failover_to_the_standby(tmp_path: Path, server: PostgresServer) -> None:
    folder = Path(tempfile.mkdtemp(prefix="standby-"))
    standby = standby_of(server, folder)
    address = f"postgresql://fluxserve@127.0.0.1:{server.port},127.0.0.1:{standby.port}/postgres"
    cluster = Cluster(tmp_path, address)
    try:
        node = cluster.start()
        before = [node.submit(), node.submit("wait over")]
        node.until_begun(before[1])
        server.kill()
        cluster.open("over")
        with psycopg.connect(standby.address, autocommit=True) as connection:
            connection.execute("SELECT pg_promote()")
        eventually(lambda: submitted(node).status_code == 200, within_s=30)
        ends = [node.until_ended(job_id) for job_id in before]
        assert [(end["status"], end["attempts"]) for end in ends] == [("completed", 1)] * 2
    finally:
        cluster.close()
        standby.remove()
