"""What README.md tells a newcomer to type works as it stands, but for the ports of this run."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.acceptance.official import CLIENTS
from tests.acceptance.serving import COMMAND, Server, clean_environment

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
URL = re.compile(r"http[s]?://[^\s\"']+/files/[0-9a-f]{32}\.jpe?g")


def block(language: str, word: str) -> str:
    """The first fenced block of a language that contains a word."""
    return next(text for kind, text in BLOCK.findall(README) if kind == language and word in text)


def on(server: Server, text: str) -> str:
    """A README text with this run's port instead of the default one."""
    return text.replace("http://127.0.0.1:8000", server.url)


def picture_in(output: str) -> bytes:
    """Download the picture whose address was printed."""
    found = URL.search(output)
    assert found is not None, output
    answer = httpx.get(found[0], verify=False)  # the certificate is test_areas' business
    assert answer.headers["content-type"] == "image/jpeg"
    return answer.content


def test_the_first_curl(server: Server) -> None:
    line = on(server, block("sh", "curl"))
    done = subprocess.run(["sh", "-ec", line], capture_output=True, text=True, timeout=90)
    assert picture_in(done.stdout).startswith(b"\xff\xd8")


def test_the_python_program(server: Server) -> None:
    eval_line = next(line for line in README.splitlines() if "env --client python" in line)
    (command,) = re.findall(r'`(eval "\$\(.venv/bin/fluxserve env --client python\)")`', eval_line)
    script = command.replace(".venv/bin/fluxserve", COMMAND[0]) + '\nexec "$PYTHON" -c "$PROGRAM"'
    given = {
        "PYTHON": str(Path(COMMAND[0]).with_name("python")),
        "PROGRAM": block("python", "fal_client"),
        "FLUXSERVE_DATA_DIR": str(server.data_dir),
    }
    done = subprocess.run(
        ["sh", "-ec", script], capture_output=True, text=True, timeout=90, env=clean_environment() | given
    )
    assert re.search(r"^step \d+/28", done.stdout, re.MULTILINE), done.stdout + done.stderr
    assert picture_in(done.stdout)


@pytest.mark.skipif(CLIENTS["node"].why_not() is not None, reason=str(CLIENTS["node"].why_not()))
def test_the_javascript_program(server: Server) -> None:
    folder = ROOT / "tests" / "acceptance" / "js"
    done = subprocess.run(
        ["node", "--input-type=module", "-e", on(server, block("js", "fal.subscribe"))],
        capture_output=True,
        text=True,
        timeout=90,
        cwd=folder,
        env=clean_environment(),
    )
    assert re.search(r"^step \d+/28", done.stdout, re.MULTILINE), done.stdout + done.stderr
    assert picture_in(done.stdout)


def test_the_table_says_what_env_prints(server: Server) -> None:
    for client in ("js", "browser"):
        done = subprocess.run(
            [*COMMAND, "env", "--client", client, "--data-dir", str(server.data_dir)],
            capture_output=True,
            text=True,
            timeout=30,
            env=clean_environment(),
        )
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("fal.config")]
        assert f"`{line.replace(server.url, 'http://127.0.0.1:8000')}`" in README


def test_every_command_it_names_exists() -> None:
    named = set(re.findall(r"`fluxserve ([a-z]+)", README))
    shown = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, timeout=30).stdout
    assert named
    for command in named:
        assert re.search(rf"\b{command}\b", shown), command
    targets = subprocess.run(["make", "-s", "help"], capture_output=True, text=True, cwd=ROOT, timeout=30).stdout
    for target in set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE)):
        assert f"make {target} " in targets


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_serve_hands_the_flags_on() -> None:
    command = ["make", "-n", "serve", "ARGS=--port 9000"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30).stdout
    assert re.search(r"fluxserve serve --port 9000", shown)


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
