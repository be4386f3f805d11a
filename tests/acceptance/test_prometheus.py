"""A real Prometheus that scrapes a real server: every question of the dashboard and of the rules has an answer."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator

import httpx
import pytest
import yaml

from tests.acceptance.serving import ROOT, Server
from tests.ports import free_port

pytestmark = pytest.mark.slow
GRAFANA = ROOT / "deploy" / "grafana"
CONFIG = """
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: ["%s"]
scrape_configs:
  - job_name: fluxserve
    static_configs: [{targets: ["127.0.0.1:%d"]}]
"""
NEED_MORE = (
    "fluxserve_gpu_",
    "fluxserve_worker_memory_bytes",
    "fluxserve_cached_requests",
    "fluxserve_webhook_late_seconds > 900",
)
"""Of a card, of a model that takes memory, of stored answers, of trouble: nothing to be seen here."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("node"), model="fake:step_ms=20").start()
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def prometheus(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    if (program := shutil.which("prometheus")) is None:
        pytest.skip("no prometheus (apt-get install prometheus)")
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    (folder / "config.yml").write_text(CONFIG % (GRAFANA / "alerts.yaml", server.port))
    flags = ["--config.file", folder / "config.yml", "--storage.tsdb.path", folder / "data"]
    running = subprocess.Popen(
        [program, *flags, f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False) as http:
            yield http
    finally:
        running.terminate()
        running.wait(10)


def expressions() -> list[str]:
    """Of all panels and rules."""
    panels = json.loads((GRAFANA / "fluxserve.json").read_text())["panels"]
    asked = [target["expr"].replace("$__rate_interval", "30s") for panel in panels for target in panel["targets"]]
    return asked + [
        rule["expr"]
        for group in yaml.safe_load((GRAFANA / "alerts.yaml").read_text())["groups"]
        for rule in group["rules"]
    ]


def draw(server: Server) -> None:
    body = {"prompt": "a fox", "num_inference_steps": 4, "image_size": {"width": 64, "height": 64}}
    httpx.post(f"{server.url}/run/fal-ai/flux/dev", json=body, timeout=60, verify=False).raise_for_status()


def test_every_question_has_an_answer(server: Server, prometheus: httpx.Client) -> None:
    deadline = time.monotonic() + 60
    unanswered = dict.fromkeys(expressions(), True)
    while any(unanswered.values()) and time.monotonic() < deadline:
        draw(server)
        for expression in [each for each, is_open in unanswered.items() if is_open]:
            try:
                answer = prometheus.get("/api/v1/query", params={"query": expression})
            except httpx.TransportError:
                break  # it is still starting
            told = answer.json()
            assert told["status"] == "success", (expression, told)
            is_comparison = any(sign in expression for sign in (" > ", " == 0"))
            unanswered[expression] = not (told["data"]["result"] or is_comparison or _needs_more(expression))
        time.sleep(0.5)
    assert [expression for expression, is_open in unanswered.items() if is_open] == []
    rules = prometheus.get("/api/v1/rules").json()["data"]["groups"][0]["rules"]
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}


def _needs_more(expression: str) -> bool:
    return any(name in expression for name in NEED_MORE)
