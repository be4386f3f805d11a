"""What is counted of ended requests, and that the dashboard and the rules ask for what there is."""

from __future__ import annotations

import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.server.api_server import Api

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


def test_the_dashboard_and_the_rules_ask_for_metrics_that_there_are(api: Api) -> None:
    api.submit(num_images=99)
    known = set(samples(api))
    known |= {f"{name}_bucket" for name in known} | {f"{name}_total" for name in known}
    texts = [(GRAFANA / "alerts.yaml").read_text()]
    texts += [
        target["expr"]
        for panel in json.loads((GRAFANA / "fluxserve.json").read_text())["panels"]
        for target in panel["targets"]
    ]
    asked = {name for text in texts for name in re.findall(r"\bfluxserve_\w+", text)}
    assert len(asked) > 10
    assert asked <= known
