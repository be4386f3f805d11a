"""Programs without a setting for fal's address, and plain HTTP clients of other languages."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.compatibility import driving
from tests.compatibility.rows import COMFYUI, HOSTS, HUGGINGFACE, JAVA, NODE_PROXY, OPEN_WEBUI, Row, params
from tests.conformance.scripted import DEV, Scripted


@pytest.mark.parametrize("row", params((COMFYUI,)))
def test_requests_fetches_what_fal_client_drew(row: Row, server: Scripted, tmp_path: Path) -> None:
    lines = driving.printed(server.server, row.setup)
    seen = driving.drive_python(row, lines, tmp_path, "drive_requests.py")
    assert seen.value("submit, get, requests.get") == {"magic": "ffd8"}
    assert seen.value("requests over TLS") == {"status": "ok"}
    assert seen.escapes == set()


@pytest.mark.parametrize("row", params((HUGGINGFACE,)))
def test_huggingface_hub_draws_by_its_provider(row: Row, server: Scripted, tmp_path: Path) -> None:
    lines = f"unset HF_HUB_OFFLINE\n{driving.printed(server.server, row.setup)}"  # which the tests set for themselves
    seen = driving.drive_python(row, lines, tmp_path, "drive_huggingface.py")
    assert seen.value("text_to_image") == {"size": [64, 64]}
    assert seen.escapes == set()


@pytest.mark.parametrize("row", params((OPEN_WEBUI,)))
def test_open_webui_draws(row: Row, server: Scripted, tmp_path: Path) -> None:
    lines = driving.printed(server.server, row.setup)
    seen = driving.drive_python(row, lines, tmp_path, "drive_open_webui.py")
    assert seen.value("images/generations") == {"magic": "8950"}
    assert seen.escapes == set()


@pytest.mark.parametrize("row", params((NODE_PROXY,)))
def test_node_is_led_here_without_a_line_of_code(row: Row, server: Scripted, tmp_path: Path) -> None:
    if (reason := driving.why_not(row)) is not None:
        pytest.skip(reason)
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, timeout=30).stdout
    major, minor = (int(part) for part in version.lstrip("v").split(".")[:2])
    if (major, minor) < (22, 21):
        pytest.skip(f"Node {version.strip()} heeds no proxy: 22.21 or later does")
    values = server.server.setup(row.setup)
    lines = 'import { fal } from "@fal-ai/client"'
    seen = driving.drive_node(row, lines, tmp_path, "client.program.mjs", **values)
    seen.assert_all(row.operations)
    assert seen.escapes == set()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("row", params((HOSTS,)))
def test_fals_own_names_are_served(row: Row, server: Scripted) -> None:
    """As with the printed lines in the hosts file, by curl's own way to send a name elsewhere."""
    values = server.server.setup(row.setup)
    for name in values["names"]:
        there = ["--connect-to", f"{name}:443:{values['address']}:{server.server.tls_port}"]
        command = ["curl", "-s", "--cacert", values["ca_bundle"], *there, "-H", f"Authorization: Key {values['key']}"]
        asked = [f"https://{name}/{DEV}", "-d", json.dumps(driving.PICTURE)]
        if name in ("fal.run", "falrun.com"):
            done = subprocess.run([*command, *asked], capture_output=True, text=True, timeout=driving.TIMEOUT_S)
            assert json.loads(done.stdout)["images"][0]["url"].startswith(f"{server.url}/files/")
        else:
            done = subprocess.run([*command, f"https://{name}/"], capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, (name, done.stderr)


@pytest.mark.skipif(shutil.which("java") is None, reason="no JDK is installed")
@pytest.mark.parametrize("row", params((JAVA,)))
def test_java_keeps_its_body(row: Row, server: Scripted) -> None:
    program = driving.PROGRAMS / "Draw.java"
    key = server.server.setup(row.setup)["key"]
    command = ["java", str(program), server.url, key, json.dumps(driving.PICTURE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=driving.TIMEOUT_S)
    lines = done.stdout.splitlines()
    assert [line[:4] for line in lines] == ["200 "] * 3, done.stderr
    assert all(re.search(r'"width": ?64', line) for line in lines[:2])
    assert "IN_QUEUE" in lines[2]
