"""The examples for tools: LiteLLM's file, and the list of all examples.

The CI job is run by tests/acceptance/test_wheel.py, with what it installs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from server.api.endpoints import ENDPOINTS
from tests.acceptance.serving import Server, clean_environment
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
