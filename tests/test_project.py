"""The files around the code agree with each other: versions, locks, changelog."""

from __future__ import annotations

import fnmatch
import importlib
import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path, PurePosixPath
from types import ModuleType

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from server.cli.main import app
from server.settings import VERSION, Settings

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(name: str) -> dict[str, str]:
    """Package -> version of a lock file; every line must be an exact pin; a package may be for Linux alone."""
    lines = (ROOT / name).read_text().splitlines()
    bare = [line.removesuffix(' ; platform_system == "Linux"') for line in lines]
    pairs = [re.fullmatch(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)", line) for line in bare]
    assert all(pairs), [line for line, pair in zip(lines, pairs, strict=True) if not pair]
    return {pair[1]: pair[2] for pair in pairs if pair}


def wanted(requirements: list[str]) -> set[str]:
    """Normalised package names of a list of requirements."""
    names = (re.match(r"[A-Za-z0-9_-]+", requirement) for requirement in requirements)
    return {re.sub(r"[-_]+", "-", name[0]).lower() for name in names if name}


def test_one_version() -> None:
    assert PROJECT["version"] == VERSION


def test_the_locks_pin_what_the_project_needs_and_agree() -> None:
    runtime, development = pins("requirements.lock"), pins("requirements-dev.lock")
    assert wanted(PROJECT["dependencies"]) <= set(runtime)
    assert wanted(PROJECT["optional-dependencies"]["dev"]) <= set(development)
    assert {name: development[name] for name in runtime if name in development}.items() <= runtime.items()


OLDEST = pins("requirements-oldest.lock")
RANGES = [
    Requirement(line)
    for lines in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for line in lines
    if canonicalize_name(Requirement(line).name) in OLDEST
]


def lowest(requirement: Requirement) -> Version:
    """Where a range begins; it must say so, and nothing else."""
    (bound,) = requirement.specifier
    assert bound.operator in (">=", "=="), f"{requirement} does not begin with a version"
    return Version(bound.version)


def test_the_oldest_lock_has_every_package_where_its_range_begins() -> None:
    """`make test-oldest` runs what pyproject.toml promises: a bound that is raised or lowered is locked anew."""
    (backend,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert backend == f"hatchling=={OLDEST['hatchling']}"
    assert wanted(PROJECT["dependencies"]) | wanted(PROJECT["optional-dependencies"]["dev"]) <= set(OLDEST)
    for requirement in RANGES:
        bound, locked = lowest(requirement), Version(OLDEST[canonicalize_name(requirement.name)])
        assert locked.release[: len(bound.release)] == bound.release, f"{requirement}, but {locked} is locked"


def test_no_range_begins_with_a_version_that_the_audit_refuses() -> None:
    floors = script("audit").FLOORS
    for requirement in RANGES:
        floor, hole = floors.get(canonicalize_name(requirement.name), ("0", ""))
        assert lowest(requirement) >= Version(floor), f"{requirement}: {hole}"
    assert not {name for name, (floor, _) in floors.items() if Version(OLDEST.get(name, "999")) < Version(floor)}


def test_torch_is_pinned_without_a_build_label_so_that_one_command_serves_cpu_and_gpu() -> None:
    assert pins("requirements.lock")["torch"] == "2.13.0"


def test_the_javascript_lock_names_versions_and_no_host() -> None:
    folder = ROOT / "tests" / "acceptance" / "js"
    wanted_client = json.loads((folder / "package.json").read_text())["dependencies"]["@fal-ai/client"]
    lock = json.loads((folder / "package-lock.json").read_text())["packages"]
    assert lock["node_modules/@fal-ai/client"]["version"] == wanted_client
    assert not [name for name, entry in lock.items() if "resolved" in entry]


def test_make_help_lists_every_command() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (help .*)$", makefile, re.MULTILINE)
    shown = subprocess.run(["make", "-s", "help"], capture_output=True, text=True, cwd=ROOT, timeout=30).stdout
    assert set(phony.split()) == set(re.findall(r"^  make ([a-z-]+)", shown, re.MULTILINE))


IMAGES = ("Dockerfile.cuda", "deploy/Dockerfile.cpu")
of_each_image = pytest.mark.parametrize("image", IMAGES)


def dockerfile(image: str) -> list[tuple[str, str]]:
    """The instructions of an image's file and their arguments, continued lines joined."""
    lines = [line for line in (ROOT / image).read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(name, rest) for name, _, rest in (line.strip().partition(" ") for line in joined.splitlines()) if name]


@of_each_image
def test_the_image_copies_what_exists_and_is_not_ignored(image: str) -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    sources = [word for name, rest in dockerfile(image) if name == "COPY" for word in rest.split()[:-1]]
    assert {"requirements.lock", "server", "pipelines", "models", "CHANGELOG.md"} <= set(sources)
    assert all((ROOT / source).exists() for source in sources)
    assert not {source for source in sources if is_ignored(source, ignored)}
    hooks = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["hooks"]
    assert {hook["path"] for hook in hooks.values()} <= set(sources), "what builds the package runs there, too"


def is_ignored(path: str, patterns: list[str]) -> bool:
    """As Docker reads the file: the last line that fits a path or a folder above it counts."""
    last = False
    for pattern in patterns:
        above = [path, *map(str, PurePosixPath(path).parents)]
        if any(fnmatch.fnmatch(each, pattern.removeprefix("!").replace("**/", "*")) for each in above):
            last = not pattern.startswith("!")
    return last


@of_each_image
def test_the_image_runs_the_command_that_is_installed_as_nobody_special(image: str) -> None:
    instructions = dict(dockerfile(image))
    script, subcommand = json.loads(instructions["ENTRYPOINT"])
    assert script in PROJECT["scripts"]
    assert subcommand in {command.name or command.callback.__name__ for command in app.registered_commands}
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", instructions["USER"])
    assert json.loads(instructions["VOLUME"]) == ["/data", "/huggingface"]
    python, _, code = json.loads(instructions["HEALTHCHECK"].partition("CMD ")[2])
    assert python == "python3"
    compile(code, "HEALTHCHECK", "exec")


@of_each_image
def test_the_image_needs_to_write_nowhere_but_in_its_volumes_and_tmp(image: str) -> None:
    (environment,) = [rest for name, rest in dockerfile(image) if name == "ENV"]
    values = dict(word.split("=", 1) for word in environment.split())
    volumes = json.loads(dict(dockerfile(image))["VOLUME"])
    assert {values["FLUXSERVE_DATA_DIR"], values["HF_HOME"]} == set(volumes)
    assert values["PYTHONDONTWRITEBYTECODE"] == "1"
    head = (ROOT / image).read_text().partition("FROM")[0]
    for flag in ("--read-only", "--tmpfs /tmp", "--cap-drop ALL", "no-new-privileges"):
        assert flag in head


def test_compose_starts_the_images_with_a_key_and_nothing_they_do_not_need() -> None:
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    for name, service in services.items():
        image = service["build"]["dockerfile"]
        assert image in IMAGES
        assert (ROOT / "deploy" / service["build"]["context"]).resolve() == ROOT
        instructions = dict(dockerfile(image))
        mounted = {volume.partition(":")[2] for volume in service["volumes"]}
        assert mounted == set(json.loads(instructions["VOLUME"]))
        assert {port.partition(":")[2] for port in service["ports"]} == set(instructions["EXPOSE"].split())
        assert service["environment"]["FLUXSERVE_API_KEYS"].startswith("${FLUXSERVE_API_KEYS:?"), name
        assert (service["read_only"], service["cap_drop"], service["tmpfs"]) == (True, ["ALL"], ["/tmp"])
        fields = {
            variable.removeprefix("FLUXSERVE_").lower() for variable in service["environment"] if "FLUX" in variable
        }
        assert fields <= set(Settings.model_fields)


def test_every_page_of_the_documentation_has_its_place_in_the_site() -> None:
    nav = yaml.safe_load((ROOT / "deploy" / "site" / "mkdocs.yml").read_text())["nav"]
    placed = [page for part in nav for pages in part.values() for page in pages]
    assert len(placed) == len(set(placed))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= set(placed)
    made = {"index.md", "reference/fields.md", "reference/commands.md", "decisions/index.md"}
    for page in set(placed) - made:
        assert (ROOT / page.removeprefix("source/") if page.startswith("source/") else ROOT / "docs" / page).is_file()


def script(name: str) -> ModuleType:
    """A script of CI as a module."""
    sys.path.insert(0, str(ROOT / ".ci"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def test_the_bill_of_materials_names_every_locked_package() -> None:
    bill = script("bill_of_materials").bill()
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    named = {entry["name"]: entry for entry in bill["components"]}
    runtime = script("bill_of_materials").pins(ROOT / "requirements.lock")
    assert {name: entry["version"] for name, entry in named.items()} == runtime
    assert named["fastapi"]["purl"] == f"pkg:pypi/fastapi@{runtime['fastapi']}"
    assert named["fastapi"]["licenses"] == [{"license": {"name": "MIT"}}]


def test_the_audit_finds_what_is_not_as_locked_old_or_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit = script("audit")
    lock = tmp_path / "a.lock"
    lock.write_text(f"typer==0.0.1\nno-such-package==1.0\nfastapi=={metadata.version('fastapi')}\n")
    wrong, absent = audit.pinned_elsewhere(lock)
    assert "0.0.1 is locked" in wrong
    assert "not installed" in absent
    assert list(audit.too_old()) == []
    monkeypatch.setitem(audit.FLOORS, "fastapi", ("999", "a hole"))
    assert [fault.endswith("a hole") for fault in audit.too_old()] == [True]
    assert list(audit.changed_files("annotated-types")) == []
    monkeypatch.setattr(audit, "_digest", lambda *_: "another")
    assert list(audit.changed_files("annotated-types"))
