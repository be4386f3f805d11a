"""The wheel in an environment without the checkout, started in another folder, draws for the official client."""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
import yaml

from tests.acceptance.judging import assert_holds
from tests.acceptance.official import CLIENTS
from tests.acceptance.serving import ROOT, Server, clean_environment
from tests.acceptance.test_first_picture import download

# Building, installing and starting come before the first test.
pytestmark = pytest.mark.timeout(300)

CI = ROOT / "examples" / "ci"
PACKAGES = ("server", "pipelines", "models")
# PyTorch's CUDA builds bring it; without it our kernels are not used.
BROUGHT_BY_A_BUILD_OF_TORCH = {"triton"}


@dataclass(frozen=True)
class Installed:
    """A virtual environment with the wheel and what it needs, and nothing of the checkout."""

    folder: Path
    wheel: Path

    @property
    def environment(self) -> dict[str, str]:
        """Of a shell in which it is active. Nothing leads to the checkout, nor to the developer's home."""
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        home = {"HOME": str(self.folder.parent), "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        dropped = ("PYTHONPATH", "XDG_DATA_HOME")
        return {name: value for name, value in clean_environment().items() if name not in dropped} | home

    def run(self, *command: str) -> str:
        """What a program of this environment prints, started from another folder."""
        done = subprocess.run(
            command, cwd=self.folder.parent, env=self.environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Built as `make dist` does. Its dependencies are lent by the environment of the tests: installing them takes
    minutes. A folder named in a .pth file is searched, and the .pth files in it, such as ours to the checkout, are not
    read."""
    folder = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    (wheel,) = folder.glob("fluxserve-*.whl")
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    install = ["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *install, wheel], cwd=folder, check=True)
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (packages / "lent.pth").write_text(sysconfig.get_path("purelib"))
    return Installed(folder / "venv", wheel)


@dataclass(frozen=True)
class Job:
    """The CI job of examples/ci as it stands, but for the ports and what installs: the wheel is there."""

    installed: Installed
    server: Server
    folder: Path

    def begin(self, name: str) -> subprocess.Popen[str]:
        """Start one of its steps as the leader of a process group."""
        (job,) = yaml.safe_load((CI / "github-actions.yaml").read_text())["jobs"].values()
        (script,) = [step["run"] for step in job["steps"] if step.get("name") == name]
        own = {"PORT": self.server.port, "TLS_PORT": self.server.tls_port, "DATA_DIR": self.server.data_dir}
        environment = self.installed.environment | {f"FLUXSERVE_{word}": str(value) for word, value in own.items()}
        script = script.replace("http://127.0.0.1:8000", self.server.url)
        with (self.folder / f"{name}.log").open("w") as log:
            return subprocess.Popen(
                ["bash", "-eo", "pipefail", "-c", script],
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def told(self, name: str) -> str:
        """What a file of its folder says."""
        return (self.folder / name).read_text()


@pytest.fixture(scope="module")
def job(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """Its server runs, started by the job's own step in a folder with nothing but the app and its test."""
    folder = tmp_path_factory.mktemp("app")
    for name in ("app.py", "test_app.py"):
        shutil.copy(CI / name, folder)
    job = Job(installed, Server(tmp_path_factory.mktemp("data")), folder)
    started = job.begin("Start the server")
    try:
        assert started.wait(200) == 0, job.told("fluxserve.log")
        yield job
    finally:
        os.killpg(started.pid, signal.SIGTERM)
        started.wait(30)


def test_the_job_tests_an_app(job: Job) -> None:
    tested = job.begin("Test")
    assert tested.wait(100) == 0, job.told("Test.log")
    assert "2 passed" in job.told("Test.log")


def test_it_draws_for_the_official_client(job: Job) -> None:
    trace = CLIENTS["python"](job.server, "subscribe", "fal-ai/flux-pro", prompt="a red circle on a blue background")
    assert_holds(download(job.server, trace.result["images"][0]["url"]), ground="blue", colour="red")


def test_a_sibling_draws_that_shares_parts_with_it(job: Job) -> None:
    """A wheel holds no links."""
    trace = CLIENTS["python"](job.server, "run", "fal-ai/flux/schnell", prompt="a green square on a white background")
    assert_holds(download(job.server, trace.result["images"][0]["url"]), ground="white", colour="green")


def test_every_module_that_runs_is_the_wheels(installed: Installed) -> None:
    names = ", ".join(PACKAGES)
    shown = installed.run("python", "-c", f"import {names}\nfor m in ({names}): print(m.__file__)")
    places = [Path(line) for line in shown.splitlines()]
    assert len(places) == 3
    assert all(place.is_relative_to(installed.folder) for place in places)


def test_it_keeps_data_in_the_users_own_folder(installed: Installed) -> None:
    shown = installed.run("python", "-c", "from server.settings import load; print(load({}).data_dir)")
    assert Path(shown.strip()) == installed.folder.parent / ".local" / "share" / "fluxserve"


def test_it_says_its_version_and_what_changed(installed: Installed) -> None:
    first, second = installed.run("fluxserve", "--version").splitlines()
    assert re.fullmatch(r"fluxserve \d+\.\d+\.\d+", first)
    (command,) = re.findall(r"fluxserve \w+", second)
    section = installed.run(*command.split())
    assert section.startswith("## ")
    assert section in (ROOT / "CHANGELOG.md").read_text() + "\n"


def test_it_holds_all_that_is_committed_of_the_packages(installed: Installed) -> None:
    listed = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    with zipfile.ZipFile(installed.wheel) as wheel:
        names = set(wheel.namelist())
    present = {name for name in listed.stdout.split() if (ROOT / name).exists()}
    assert present <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)


def test_it_asks_for_every_package_that_it_imports() -> None:
    """The environment of the tests lends more than a clean one would have."""
    foreign = {name for package in PACKAGES for file in (ROOT / package).rglob("*.py") for name in imported(file)}
    foreign -= set(sys.stdlib_module_names) | set(PACKAGES) | BROUGHT_BY_A_BUILD_OF_TORCH
    brought = closure("fluxserve", without="dev")
    owners = packages_distributions()
    assert {name for name in foreign if not brought & {normal(owner) for owner in owners.get(name, ())}} == set()


def imported(file: Path) -> set[str]:
    """First words of what a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def closure(package: str, without: str) -> set[str]:
    """A package's requirements, extras but one included, and all that those bring without extras."""
    found: set[str] = set()
    waiting = [line for line in requires(package) or () if f"extra == '{without}'" not in line]
    while waiting:
        name = normal(waiting.pop())
        if name not in found:
            found.add(name)
            waiting += [line for line in _required_by(name) if "extra ==" not in line or "standard" in line]
    return found


def _required_by(name: str) -> list[str]:
    try:
        return requires(name) or []
    except ModuleNotFoundError:  # an extra that is not installed here
        return []


def normal(requirement: str) -> str:
    """The normalised name at the beginning of a requirement."""
    return re.sub(r"[-_.]+", "-", re.findall(r"^[A-Za-z0-9_.-]+", requirement)[0]).lower()
