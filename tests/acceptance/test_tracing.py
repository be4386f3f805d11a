"""Logs and traces of a real node and worker: JSON lines with request ids, spans at a real OTLP receiver."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.serving import Server
from tests.server.api_server import eventually

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector(ThreadingHTTPServer):
    """Takes traces by OTLP over HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receive)
        self.spans: list[Any] = []
        self.services: set[str] = set()


class _Receive(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        sent = service.ExportTraceServiceRequest.FromString(body)
        assert isinstance(self.server, Collector)
        for resource in sent.resource_spans:
            named = {each.key: each.value.string_value for each in resource.resource.attributes}
            self.server.services.add(named["service.name"])
            self.server.spans += [span for scope in resource.scope_spans for span in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *about: Any) -> None:
        """Nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    pytest.importorskip("opentelemetry.sdk.trace", reason="it comes with the extra `otel`")
    with Collector() as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        yield collector
        collector.shutdown()


def test_a_request_is_one_trace_through_node_and_worker_and_names_itself_in_the_log(
    collector: Collector, tmp_path: Path
) -> None:
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
        "OTEL_SERVICE_NAME": "pictures",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    server = Server(tmp_path, ("--log-format", "json"), environment, model="fake:step_ms=20").start()
    try:
        server.wait_ready()
        headers = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
        body = {"prompt": "a secret fox", "num_inference_steps": 3}
        answer = httpx.post(f"{server.url}/run/fal-ai/flux/dev", json=body, headers=headers, timeout=60, verify=False)
        request_id = answer.headers["x-fal-request-id"]
        eventually(lambda: any(span.name == "fluxserve.request" for span in collector.spans), 20)
    finally:
        server.close()
    spans = {span.name: span for span in collector.spans}
    root = spans["fluxserve.request"]
    assert collector.services == {"pictures"}
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    assert root.parent_span_id.hex() == CALLER
    assert {spans[name].parent_span_id for name in ("queue", "run")} == {root.span_id}
    inner = ["worker.encode", "worker.denoise", "worker.decode", "store"]
    assert {spans[name].parent_span_id for name in inner} == {spans["run"].span_id}
    denoise = spans["worker.denoise"]
    assert denoise.end_time_unix_nano - denoise.start_time_unix_nano >= 2 * 20e6
    assert root.start_time_unix_nano <= spans["run"].start_time_unix_nano <= root.end_time_unix_nano
    numbers = {each.key: each.value.int_value for each in root.attributes}
    assert numbers["fluxserve.num_inference_steps"] == 3
    told = {each.key: each.value.string_value for each in root.attributes}
    assert (told["fluxserve.request_id"], told["fluxserve.model"]) == (request_id, "fake")
    assert "secret" not in str(collector.spans)
    lines = [json.loads(line) for line in server.output.splitlines() if line.startswith("{")]
    own = [line["message"] for line in lines if line.get("request_id") == request_id]
    assert any("goes to" in message for message in own)
    assert any("ended: completed" in message for message in own)
    assert {"time", "level", "logger", "message"} <= lines[0].keys()
