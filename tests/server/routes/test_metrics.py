"""What is counted of ended requests, and that the dashboard and the rules ask for what there is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelines.protocol.tally import StepTally
from server.gateway.key_file import KeyFile
from server.workers.gpus import GpuReading, Gpus
from tests.server.api_node import ApiNode
from tests.server.api_server import Api, serve

GRAFANA = Path(__file__).parents[3] / "deploy" / "grafana"


def samples(api: Api) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Every sample by name, as Prometheus' own parser reads them."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(api.http.get("/metrics").text):
        found.setdefault(family.name, [])
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_ended_requests_are_counted_by_endpoint_and_end(api: Api) -> None:
    cancelled = api.submit()
    assert api.http.put(f"/queue/fal-ai/flux/requests/{cancelled}/cancel").status_code == 202
    api.submit(num_images=99)  # refused by the model: ended at once
    counted = {(labels["status"], value) for labels, value in samples(api)["fluxserve_requests_total"]}
    assert counted == {("cancelled", 1.0), ("failed", 1.0)}


def test_pictures_are_told_apart_by_model_and_class_of_key_but_never_by_key(tmp_path: Path) -> None:
    with serve(ApiNode(tmp_path, api_keys=("op:secret",))) as api:
        key, issued = KeyFile(tmp_path / "keys.json").issue("app")
        for authorization in (key, "op:secret"):
            headers = {"authorization": f"Key {authorization}"}
            assert api.http.post("/queue/fal-ai/flux/dev", json={"prompt": "a"}, headers=headers).status_code == 200
            job = api.node.claim()
            api.node.finish(job)
            api.node.live.ended(job.id)
        text = api.http.get("/metrics").text
    for key_class in ("issued", "configured"):
        labels = f'{{endpoint="fal-ai/flux/dev",key_class="{key_class}",model="FLUX.1-dev"}}'
        assert f"fluxserve_images_total{labels} 1.0" in text
        assert f"fluxserve_device_seconds_total{labels} 1.25" in text
    assert issued.id not in text


def test_steps_cards_and_what_waits_are_told(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    tally = StepTally()
    tally.note(0.02, 3)
    tally.note(99.0, 1)
    beat = {"steps": 2, "load_ms": 1500, "tally": tally.counts(), "lookups": {"prompts": [3, 1]}}
    worker = {"device": "cuda:0", **beat}
    monkeypatch.setattr(api.node, "health", lambda: {"ready": True, "state": "ready", "workers": [worker]})
    monkeypatch.setattr(Gpus, "read", lambda self: [GpuReading("cuda:0", {"power_watts": 300.0})])
    api.submit()
    found = samples(api)
    steps = {labels["le"]: value for labels, value in found["fluxserve_step_seconds_bucket"]}
    assert (steps["0.01"], steps["0.03"], steps["10"], steps["+Inf"]) == (0.0, 1.0, 1.0, 2.0)
    assert found["fluxserve_step_pictures_sum"] == [({"device": "cuda:0"}, 4.0)]
    assert found["fluxserve_worker_load_seconds"] == [({"device": "cuda:0"}, 1.5)]
    asked = [(labels["result"], value) for labels, value in found["fluxserve_worker_cache_lookups_total"]]
    assert asked == [("hit", 3.0), ("miss", 1.0)]
    assert found["fluxserve_gpu_power_watts"] == [({"device": "cuda:0"}, 300.0)]
    assert found["fluxserve_queue_oldest_seconds"][0][1] > 0
    assert found["fluxserve_webhooks_owed"] == [({}, 0.0)]


def test_prometheus_finds_nothing_to_mend(api: Api) -> None:
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("no promtool (apt-get install prometheus)")
    api.submit(num_images=99)
    text = api.http.get("/metrics").text
    looked_at = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=30)
    assert (looked_at.returncode, looked_at.stderr) == (0, "")
    subprocess.run([promtool, "check", "rules", GRAFANA / "alerts.yaml"], check=True, timeout=30)


def test_the_dashboard_and_the_rules_ask_for_metrics_that_there_are(api: Api) -> None:
    api.submit(num_images=99)
    gpu = {"memory_used_bytes", "memory_total_bytes", "utilization_ratio", "power_watts"}
    known = set(samples(api)) | {f"fluxserve_gpu_{name}" for name in gpu}
    known |= {f"{name}_{part}" for name in known for part in ("bucket", "sum", "count", "total")}
    texts = [(GRAFANA / "alerts.yaml").read_text()]
    texts += [
        target["expr"]
        for panel in json.loads((GRAFANA / "fluxserve.json").read_text())["panels"]
        for target in panel["targets"]
    ]
    asked = {name for text in texts for name in re.findall(r"\bfluxserve_\w+", text)}
    assert len(asked) > 10
    assert asked <= known
