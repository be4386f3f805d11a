"""Run by the tests in a process of its own, with what `make charts` installed on its path: Helm, Kubernetes' schemas.

Reads {"chart", "cases": {name: values}, "versions"} from standard input, writes what Helm makes of it.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import helm_python as helm
import kubernetes_validate
import yaml

CUSTOM = ("keda.sh/", "monitoring.coreos.com/")
"""Kinds that other projects bring: Kubernetes has no schema of them."""


def case(chart: Any, values: dict[str, Any], versions: list[str]) -> dict[str, Any]:
    """Manifests and what is wrong with them; or why Helm refuses the values."""
    try:
        chart.validate_schema(values)
        rendered = chart.render(values, name="prod", namespace="flux")
    except helm.HelmError as exc:
        return {"refused": str(exc)}
    texts = [text for name, text in rendered.items() if name.endswith(".yaml")]
    manifests = [manifest for text in texts for manifest in yaml.safe_load_all(text) if manifest]
    faults = [fault for manifest in manifests for version in versions if (fault := wrong(manifest, version))]
    return {"manifests": manifests, "faults": faults}


def wrong(manifest: dict[str, Any], version: str) -> str | None:
    if manifest["apiVersion"].startswith(CUSTOM):
        return None
    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as exc:
        return f"{manifest['kind']} in {version}: {exc.message}"
    return None


asked = json.load(sys.stdin)
with helm.Chart.load(asked["chart"]) as loaded:
    cases = {name: case(loaded, values, asked["versions"]) for name, values in asked["cases"].items()}
json.dump({"lint": helm.lint(asked["chart"], strict=True), "cases": cases, "helm": helm.helm_sdk_version()}, sys.stdout)
