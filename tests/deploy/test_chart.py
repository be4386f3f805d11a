"""The Helm chart: rendered by Helm, held against Kubernetes' schemas, and its stop tried on a running server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from server.jobs.store.job import JobStatus
from server.settings import Settings
from tests.acceptance.serving import Server

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "fluxserve"
TOOLS = Path(sys.prefix) / "charts"
VERSIONS = ["1.29", "1.37"]
"""The oldest that the chart says it takes, and the newest whose schemas we have."""

CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "everything": {
        "publicUrl": "https://fal.example.com",
        "settings": {"retention_s": 2604800, "result_cache": True, "quantization": "fp8"},
        "extraEnv": [{"name": "FLUXSERVE_EXPANDER_KEY", "valueFrom": {"secretKeyRef": {"name": "x", "key": "y"}}}],
        "imagePullSecrets": ["registry"],
        "secrets": {
            "files": {"addressSecret": "address", "keyFile": "keys"},
            "s3KeyId": "id",
            "s3Secret": "secret",
            "huggingFaceToken": "token",
            "metricsKey": "metrics",
        },
        "objects": {"endpoint": "http://minio.storage:9000"},
        "modelCache": {"existingClaim": "models"},
        "runtimeClassName": "nvidia",
        "nodeSelector": {"gpu": "h100"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "priorityClassName": "high",
        "podAnnotations": {"a": "b"},
        "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"}},
        "service": {"annotations": {"a": "b"}},
        "ingress": {"enabled": True, "className": "nginx", "tlsSecretName": "tls", "annotations": {"a": "b"}},
        "autoscaling": {"enabled": True},
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "networkPolicy": {
            "from": [{"namespaceSelector": {}}],
            "store": {"to": [{"ipBlock": {"cidr": "10.0.0.5/32"}}]},
            "extraEgress": [{"ports": [{"port": 11434}]}],
        },
    },
    "nothing": {
        "podDisruptionBudget": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "serviceAccount": {"create": False},
    },
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown value": ({"replica": 3}, "replica"),
    "keys in a bucket's address": ({"objects": {"url": "s3://key:secret@bucket"}}, "/objects/url"),
    "keys among the settings": ({"settings": {"api_keys": "id:secret"}}, "api_keys"),
    "a setting that the chart itself makes": ({"settings": {"port": 9000}}, "port"),
    "nobody left who could be asked": ({"autoscaling": {"minReplicas": 0}}, "minReplicas"),
    "no model": ({"models": []}, "/models"),
    "a monitor without a key": ({"serviceMonitor": {"enabled": True}}, "needs secrets.metricsKey"),
    "a setting that there is not": ({"settings": {"qantization": "fp8"}}, "qantization"),
    "more pods at least than at most": (
        {"autoscaling": {"enabled": True, "minReplicas": 9}},
        "more than autoscaling.max",
    ),
    "half a key": ({"secrets": {"s3KeyId": "id"}}, "belong together"),
    "addresses that no other pod accepts": ({"settings": {"signed_urls_s": 600}}, "needs secrets.files.addressSecret"),
    "a variable twice": ({"extraEnv": [{"name": "FLUXSERVE_STORE", "value": "x"}]}, "FLUXSERVE_STORE is set already"),
    "a budget that lets no pod go": ({"podDisruptionBudget": {"maxUnavailable": 0}}, "maxUnavailable"),
    "a Prometheus from nowhere": ({"networkPolicy": {"metricsFrom": []}}, "metricsFrom"),
}

MADE_BY_THE_CHART = {
    *(
        "api_keys",
        "store",
        "objects",
        "s3_endpoint",
        "s3_redirect",
        "models",
        "public_url",
        "log_format",
        "expander_key",
    ),
    *("host", "port", "data_dir", "tls_port", "tls_cert", "tls_key"),
    *("cluster", "workers", "worker_cpus", "worker_host", "worker_port"),
}
"""Besides: a pod has a worker of its own, and is no place for Ray's."""


@pytest.fixture(scope="module")
def helm() -> dict[str, Any]:
    if not (TOOLS / ".installed").exists():
        if os.environ.get("CI"):
            pytest.fail("make charts has not been run")
        pytest.skip("Helm's library is not installed here: make charts")
    asked = {"chart": str(CHART), "cases": CASES | {name: values for name, (values, _) in REFUSED.items()}}
    program = [sys.executable, str(Path(__file__).with_name("chart_tools.py"))]
    done = subprocess.run(
        program,
        input=json.dumps(asked | {"versions": VERSIONS}),
        env=os.environ | {"PYTHONPATH": str(TOOLS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def manifest(helm: dict[str, Any], kind: str, case: str = "everything") -> dict[str, Any]:
    (found,) = [entry for entry in helm["cases"][case]["manifests"] if entry["kind"] == kind]
    return dict(found)


def pod(helm: dict[str, Any], case: str = "everything") -> dict[str, Any]:
    return dict(manifest(helm, "Deployment", case)["spec"]["template"]["spec"])


def test_helm_finds_nothing_to_mend(helm: dict[str, Any]) -> None:
    assert helm["lint"]["errors"] == []
    assert [message["error"] for message in helm["lint"]["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("case", list(CASES))
def test_every_manifest_is_one_that_kubernetes_takes(helm: dict[str, Any], case: str) -> None:
    assert helm["cases"][case]["faults"] == []
    kinds = [entry["kind"] for entry in helm["cases"][case]["manifests"]]
    assert len(kinds) == len(set(kinds)) == {"default": 5, "everything": 8, "nothing": 2}[case]


@pytest.mark.parametrize("case", list(REFUSED))
def test_values_that_cannot_be_meant_are_refused(helm: dict[str, Any], case: str) -> None:
    assert REFUSED[case][1] in helm["cases"][case]["refused"]


def test_every_value_is_described() -> None:
    def keys(tree: dict[str, Any], schema: dict[str, Any], place: str = "") -> Iterator[tuple[str, bool]]:
        for name, value in tree.items():
            known = schema.get("properties", {}).get(name)
            yield f"{place}{name}", known is not None
            if known is not None and isinstance(value, dict) and "properties" in known:
                yield from keys(value, known, f"{place}{name}.")

    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert [name for name, is_known in keys(values, schema) if not is_known] == []


@pytest.mark.parametrize("case", ["default", "everything"])
def test_no_secret_is_written_into_a_manifest(helm: dict[str, Any], case: str) -> None:
    (container,) = pod(helm, case)["containers"]
    for variable in container["env"]:
        is_secret = re.search(r"KEY|SECRET|TOKEN|STORE", variable["name"]) is not None
        is_put_together = re.fullmatch(r"\$\(\w+\)(,\$\(\w+\))*", variable.get("value", "")) is not None
        assert ("valueFrom" in variable or is_put_together) is is_secret, variable["name"]
    assert "Secret" not in [entry["kind"] for entry in helm["cases"][case]["manifests"]]


@pytest.mark.parametrize("case", ["default", "everything"])
def test_every_variable_is_a_setting(helm: dict[str, Any], case: str) -> None:
    (container,) = pod(helm, case)["containers"]
    names = [variable["name"] for variable in container["env"]]
    assert len(names) == len(set(names))
    ours = {name.removeprefix("FLUXSERVE_").lower() for name in names if name.startswith("FLUXSERVE_")}
    assert ours <= {*Settings.model_fields, "store"}


def test_the_key_of_the_metrics_admits_by_itself(helm: dict[str, Any]) -> None:
    """Put together as Kubernetes does: of what stands above it in the list."""
    known: dict[str, str] = {}
    for variable in pod(helm)["containers"][0]["env"]:
        secret = variable.get("valueFrom", {}).get("secretKeyRef", {}).get("key")
        held = {"api-keys": "ops:one,app:two", "metrics": "prometheus:three"}.get(secret, "")
        known[variable["name"]] = held or re.sub(
            r"\$\((\w+)\)", lambda found: known[found[1]], variable.get("value", "")
        )
    assert Settings(api_keys=known["FLUXSERVE_API_KEYS"]).api_keys == ("ops:one", "app:two", "prometheus:three")
    asked = manifest(helm, "ServiceMonitor")["spec"]["endpoints"][0]["authorization"]["credentials"]
    assert asked == {"name": "fluxserve", "key": "metrics"}


@pytest.mark.parametrize("case", ["default", "everything"])
def test_of_the_secret_a_pod_is_given_the_files_that_it_mounts(helm: dict[str, Any], case: str) -> None:
    spec = pod(helm, case)
    (volume,) = [volume["secret"] for volume in spec["volumes"] if "secret" in volume]
    given = {item["path"]: item["key"] for item in volume["items"]}
    more = {"address-secret": "address", "keys.json": "keys"} if case == "everything" else {}
    assert given == {"token-secret": "token-secret", "webhook-key.pem": "webhook-key.pem"} | more
    mounted = {mount["subPath"] for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == "secrets"}
    assert mounted == set(given)


def test_who_scrapes_is_let_in_besides_who_calls(helm: dict[str, Any]) -> None:
    called, scraped = manifest(helm, "NetworkPolicy")["spec"]["ingress"]
    assert called["from"] == [{"namespaceSelector": {}}]
    assert scraped["from"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "monitoring"}
    (everybody,) = manifest(helm, "NetworkPolicy", "default")["spec"]["ingress"]
    assert "from" not in everybody


@pytest.mark.parametrize(("case", "port"), [("default", 443), ("everything", 9000)])
def test_pods_may_go_to_the_port_of_their_bucket(helm: dict[str, Any], case: str, port: int) -> None:
    rules = manifest(helm, "NetworkPolicy", case)["spec"]["egress"]
    assert [{"protocol": "TCP", "port": port}] in [rule["ports"] for rule in rules]


def test_every_setting_may_be_given_but_those_that_the_chart_makes() -> None:
    names = json.loads((CHART / "values.schema.json").read_text())["properties"]["settings"]["propertyNames"]["enum"]
    assert names == sorted(set(Settings.model_fields) - MADE_BY_THE_CHART)


def test_a_large_number_stays_one(helm: dict[str, Any]) -> None:
    (container,) = pod(helm)["containers"]
    assert {"name": "FLUXSERVE_RETENTION_S", "value": "2604800"} in container["env"]


@pytest.mark.parametrize("case", list(CASES))
def test_a_pod_is_nobody_special_and_writes_only_where_it_must(helm: dict[str, Any], case: str) -> None:
    spec = pod(helm, case)
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] == 1000
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {"/data", "/huggingface", "/tmp", "/dev/shm"}
    secrets = {mount["mountPath"] for mount in container["volumeMounts"] if mount.get("readOnly")}
    assert {"/data/token-secret", "/data/webhook-key.pem"} <= secrets
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_the_scaling_asks_for_what_we_tell(helm: dict[str, Any]) -> None:
    (trigger,) = manifest(helm, "ScaledObject")["spec"]["triggers"]
    found = re.search(r"fluxserve_jobs\{.*status=~\"(\w+)\|(\w+)\"", trigger["metadata"]["query"])
    assert found is not None
    assert {found[1], found[2]} <= {status.value for status in JobStatus}
    assert trigger["metadata"]["ignoreNullValues"] == "false", "an empty answer is no empty queue"
    assert manifest(helm, "ScaledObject")["spec"]["fallback"]["behavior"] == "currentReplicasIfHigher"
    assert "replicas" not in manifest(helm, "Deployment")["spec"]
    assert "replicas" in manifest(helm, "Deployment", "default")["spec"]


def test_a_stopping_pod_has_time_to_drain(helm: dict[str, Any]) -> None:
    (container,) = pod(helm)["containers"]
    script = container["lifecycle"]["preStop"]["exec"]["command"][2]
    timeout = re.search(r"--timeout (\d+)", script)
    assert timeout is not None
    assert pod(helm)["terminationGracePeriodSeconds"] >= int(timeout[1]) + 20


def test_what_a_pod_runs_before_its_stop_empties_the_node(helm: dict[str, Any], tmp_path: Path) -> None:
    (container,) = pod(helm)["containers"]
    command = container["lifecycle"]["preStop"]["exec"]["command"]
    keys = "ops:secret,other:secret"
    server = Server(tmp_path, environment={"FLUXSERVE_API_KEYS": keys}, model="fake:").start()
    try:
        server.wait_ready()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        here = [part.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}") for part in command]
        done = subprocess.run(
            here,
            env=os.environ | {"PATH": path, "FLUXSERVE_API_KEYS": keys},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout.strip().rpartition(": ")[2]) == (0, "drained"), done.stderr
        assert httpx.get(f"{server.url}/readyz", verify=False).status_code == 503
    finally:
        server.stop()
