"""The examples for tools: the CI job's own steps, LiteLLM's file, and the list of all examples."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.api.endpoints import ENDPOINTS
from tests.acceptance.serving import Server, clean_environment, free_port
from tests.compatibility.driving import CLIENTS
from tests.examples.conftest import EXAMPLES, KEY

LITELLM = """
import json, sys, litellm, yaml
models = yaml.safe_load(open(sys.argv[1]))["model_list"]
for model in models:
    given = model["litellm_params"]
    given["api_base"] = given["api_base"].replace("http://127.0.0.1:8000", sys.argv[2])
router = litellm.Router(model_list=models)
print(json.dumps([router.image_generation(prompt="a fox", model=m["model_name"]).data[0].url for m in models]))
"""


def test_the_steps_of_the_ci_job_test_the_app(tmp_path: Path) -> None:
    """As they stand, but for the ports; only what installs is left out."""
    (job,) = yaml.safe_load((EXAMPLES / "ci" / "github-actions.yaml").read_text())["jobs"].values()
    steps = {step["name"]: step["run"] for step in job["steps"] if "run" in step}
    for name in ("app.py", "test_app.py"):
        shutil.copy(EXAMPLES / "ci" / name, tmp_path)
    port = free_port()
    own = {"FLUXSERVE_PORT": str(port), "FLUXSERVE_TLS_PORT": str(free_port()), "FLUXSERVE_DATA_DIR": str(tmp_path)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = clean_environment() | own | {"PATH": path}

    def step(name: str) -> subprocess.Popen[str]:
        script = steps[name].replace("http://127.0.0.1:8000", f"http://127.0.0.1:{port}")
        command = ["bash", "-eo", "pipefail", "-c", script]
        with (tmp_path / f"{name}.log").open("w") as log:
            return subprocess.Popen(
                command, cwd=tmp_path, env=environment, stdout=log, stderr=log, text=True, start_new_session=True
            )

    started = step("Start the server")
    try:
        assert started.wait(110) == 0, (tmp_path / "fluxserve.log").read_text()
        tested = step("Test")
        assert tested.wait(100) == 0, (tmp_path / "Test.log").read_text()
        assert "2 passed" in (tmp_path / "Test.log").read_text()
    finally:
        os.killpg(started.pid, signal.SIGTERM)


def litellm_models() -> list[dict[str, Any]]:
    """What LiteLLM's file offers."""
    models: list[dict[str, Any]] = yaml.safe_load((EXAMPLES / "litellm" / "config.yaml").read_text())["model_list"]
    return models


def test_litellms_file_names_endpoints_that_are_served() -> None:
    for model in litellm_models():
        assert model["litellm_params"]["model"].removeprefix("fal_ai/") in ENDPOINTS


@pytest.mark.slow
@pytest.mark.skipif(not (CLIENTS / "litellm" / ".installed").exists(), reason="litellm is not installed")
def test_litellm_draws_with_every_model_of_its_file(server: Server) -> None:
    environment = {"FLUXSERVE_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONPATH": str(CLIENTS / "litellm")}
    command = [sys.executable, "-W", "ignore", "-c", LITELLM, str(EXAMPLES / "litellm" / "config.yaml"), server.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, env=clean_environment() | environment)
    assert done.returncode == 0, done.stderr
    urls = json.loads(done.stdout.splitlines()[-1])
    assert len(urls) == len(litellm_models())
    assert all(url.startswith(server.url) for url in urls)


def test_the_list_of_examples_names_every_one() -> None:
    named = set(re.findall(r"\]\(([^)]+)\)", (EXAMPLES / "README.md").read_text()))
    there = {path.name for path in EXAMPLES.iterdir()} - {"README.md", "__pycache__"}
    assert there == {name.split("/")[0] for name in named if not name.startswith("..")}
    assert all((EXAMPLES / name).exists() for name in named)
