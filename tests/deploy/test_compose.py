"""The Compose files and samples: read by a parser of the Compose specification, and by a linter of YAML."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
TOOLS = Path(sys.prefix) / "charts"
FILES = sorted(path for path in DEPLOY.rglob("*.y*ml") if "templates" not in path.parts)
RULES = "{extends: relaxed, rules: {line-length: disable, truthy: {level: error}}}"


@pytest.fixture(scope="module")
def tools() -> dict[str, str]:
    if not (TOOLS / ".installed").exists():
        if os.environ.get("CI"):
            pytest.fail("make charts has not been run")
        pytest.skip("the linters are not installed here: make charts")
    return os.environ | {"PYTHONPATH": str(TOOLS)}


def test_yaml_is_sound(tools: dict[str, str]) -> None:
    command = [sys.executable, "-m", "yamllint", "--strict", "-d", RULES, *map(str, FILES)]
    done = subprocess.run(command, env=tools, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cluster.yaml"])
def test_compose_would_read_it(tools: dict[str, str], name: str) -> None:
    program = (
        "import sys, compose_spec\n"
        "compose_spec.PyOptions(apply_merge=True).from_yaml(open(sys.argv[1]).read()).validate()"
    )
    command = [sys.executable, "-c", program, str(DEPLOY / name)]
    done = subprocess.run(command, env=tools, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def cluster() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.cluster.yaml").read_text())
    return found


def test_the_nodes_of_the_cluster_are_alike_and_share_what_they_must() -> None:
    services = cluster()["services"]
    a, b = services["a"], services["b"]
    assert {name: value for name, value in a.items() if name not in ("ports", "volumes")} == {
        name: value for name, value in b.items() if name not in ("ports", "volumes")
    }
    ours = {name for name in a["environment"] if name.startswith("FLUXSERVE_")}
    assert {name.removeprefix("FLUXSERVE_").lower() for name in ours} <= {*Settings.model_fields, "store"}
    assert {secret["target"] for secret in a["secrets"]} == {"/data/token-secret", "/data/webhook-key.pem"}
    assert (a["read_only"], a["cap_drop"]) == (True, ["ALL"])
    assert (DEPLOY / a["build"]["dockerfile"].removeprefix("deploy/")).is_file()


def test_no_password_of_the_cluster_has_a_default() -> None:
    text = (DEPLOY / "compose.cluster.yaml").read_text()
    for name in ("FLUXSERVE_API_KEYS", "STORE_PASSWORD", "S3_SECRET"):
        assert re.findall(rf"\$\{{{name}(:.)", text)
        assert set(re.findall(rf"\$\{{{name}(:.)", text)) == {":?"}
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
