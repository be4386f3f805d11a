"""A client's program in a process of its own, after the lines that `fluxserve env` prints, and under a watch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.acceptance.serving import COMMAND, ROOT, Server, clean_environment
from tests.browser import unpacking
from tests.compatibility.rows import Row
from tests.conformance.scripted import DEV, TINY
from tests.conformance.watched import WATCHING

HERE = Path(__file__).parent
JS = HERE / "js"
PROGRAMS = HERE / "programs"
CLIENTS = ROOT / ".venv" / "clients"
PICTURE = {"prompt": "a fox", "seed": 7, **TINY}
TIMEOUT_S = 200


@dataclass(frozen=True)
class Seen:
    """What a program reported and where it wanted to go."""

    answers: dict[str, dict[str, Any]]
    targets: list[dict[str, Any]]

    @property
    def escapes(self) -> set[str]:
        """Hosts beyond loopback; the watch refused them, and every other program that was to be started."""
        refused = {str(entry["target"]) for entry in self.targets if not entry["passes"]}
        return {target for target in refused if not target.startswith("subprocess")}

    def value(self, operation: str) -> Any:
        """What an operation returned. Fails the test if it raised."""
        answer = self.answers[operation]
        assert "error" not in answer, f"{operation}: {answer['error']}"
        return answer["value"]

    def assert_all(self, operations: Iterable[str]) -> None:
        """Fail unless each of these did its work."""
        for operation in operations:
            if operation.startswith("upload") and operation != "upload of an input":
                assert self.value(operation) == {"uploaded": "what was uploaded"}
            elif operation == "cancel":
                assert self.value(operation) == {"cancelled": True}
            else:
                self.assert_picture(operation)

    def assert_picture(self, operation: str) -> None:
        """Fail unless the operation returned the tiny picture in fal's form."""
        value = self.value(operation)
        (image,) = value["images"]
        assert (image["width"], image["height"]) == (64, 64), value
        assert value["seed"] == PICTURE["seed"]


def why_not(row: Row) -> str | None:
    """Why this row cannot run here, or None."""
    if row.setup in (
        "python",
        "python-proxy",
        "fal-apps",
        "litellm",
        "openai",
        "comfyui-fal",
        "huggingface",
        "open-webui",
    ):
        is_here = not row.package or (CLIENTS / row.package / ".installed").exists()
        return None if is_here else f"{row.package} is not installed: make clients"
    if shutil.which("node") is None:
        return "Node is not installed"
    return None if (JS / "node_modules").is_dir() else "the JavaScript clients are not installed: make clients"


def printed(server: Server, setup: str) -> str:
    """What `fluxserve env --client NAME` prints for this server."""
    command = [*COMMAND, "env", "--client", setup, "--data-dir", str(server.data_dir)]
    environment = clean_environment() | server.environment
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def drive_python(row: Row, lines: str, folder: Path, program: str, asked: Mapping[str, Any] = PICTURE) -> Seen:
    """Evaluate the printed lines in a shell and start the program in it."""
    packages = str(CLIENTS / row.package) if row.package else ""
    watch = {"PYTHONPATH": os.pathsep.join(filter(None, (str(WATCHING), packages)))}
    command = ["sh", "-ec", f'{lines}\nexec "$@"', "sh", sys.executable, "-W", "ignore", str(PROGRAMS / program)]
    return _drive([*command, _arguments(row, asked)], watch, folder)


def drive_node(
    row: Row, lines: str, folder: Path, program: str, asked: Mapping[str, Any] = PICTURE, **environment: str
) -> Seen:
    """Run the program after the printed lines, as one module; the package is imported under its alias."""
    aliased = lines.replace('"@fal-ai/client"', json.dumps(row.package))
    script = f"{aliased}\n{(JS / program).read_text()}"
    watch = {"NODE_OPTIONS": f"--import={(WATCHING / 'watch.mjs').as_uri()}"}
    command = ["node", "--input-type=module", "-e", script, _arguments(row, asked)]
    return _drive(command, watch | environment, folder)


def drive_browser(row: Row, lines: str) -> Seen:
    """Run a page that begins with these lines; what the browser asked for stands in for the watch."""
    script = (JS / "browser.program.mjs").read_text()
    command = ["node", "--input-type=module", "-e", script, _arguments(row, PICTURE)]
    told = _told(command, {"PRINTED_LINES": lines} | unpacking())
    requests = [entry["request"] for entry in told if "request" in entry]
    return Seen({entry["operation"]: entry for entry in told if "operation" in entry}, requests)


def _arguments(row: Row, asked: Mapping[str, Any]) -> str:
    return json.dumps([DEV, asked, [*row.operations, *row.limits]])


def _drive(command: list[str], environment: dict[str, str], folder: Path) -> Seen:
    file = folder / "watch"
    file.touch()
    told = _told(command, environment | {"WATCH_FILE": str(file), "FAL_HOME_DIR": str(folder)})
    targets = [json.loads(line) for line in file.read_text().splitlines()]
    return Seen({entry["operation"]: entry for entry in told}, targets)


def _told(command: list[str], environment: dict[str, str]) -> list[dict[str, Any]]:
    """The JSON lines that a program prints. Fails the test if it crashed."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd=JS,  # where Node finds the packages
        env=clean_environment() | environment,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
