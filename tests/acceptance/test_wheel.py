"""The wheel in an environment without the checkout, started from another folder, draws for the official client."""

from __future__ import annotations

import ast
import os
import re
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

from tests.acceptance.judging import assert_holds
from tests.acceptance.official import CLIENTS
from tests.acceptance.serving import ROOT, Server, clean_environment
from tests.acceptance.test_first_picture import download

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


@pytest.fixture(scope="module")
def serving(installed: Installed) -> Iterator[Server]:
    """`fluxserve serve` of the wheel, in an empty folder."""
    command = (str(installed.folder / "bin" / "fluxserve"),)
    data_dir, elsewhere = installed.folder.parent / "data", installed.folder.parent / "elsewhere"
    elsewhere.mkdir()
    server = Server(data_dir, command=command, environment=installed.environment, folder=elsewhere).start()
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()


def test_it_draws_for_the_official_client(serving: Server) -> None:
    trace = CLIENTS["python"](serving, "subscribe", "fal-ai/flux-pro", prompt="a red circle on a blue background")
    assert_holds(download(serving, trace.result["images"][0]["url"]), ground="blue", colour="red")


def test_a_sibling_draws_that_shares_parts_with_it(serving: Server) -> None:
    """A wheel holds no links."""
    trace = CLIENTS["python"](serving, "run", "fal-ai/flux/schnell", prompt="a green square on a white background")
    assert_holds(download(serving, trace.result["images"][0]["url"]), ground="white", colour="green")


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
