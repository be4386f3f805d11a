"""Who imports whom: the node process never imports torch, and imports between our packages point one way."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate", "ray", "grpc")
ROOT = Path(__file__).parent.parent
PACKAGES = ("server", "pipelines", "models")


def modules_below(package: str) -> list[str]:
    """Dotted names of every module in a package folder."""
    files = sorted((ROOT / package).rglob("*.py"))
    return [".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for f in files]


def heavy_after_importing(modules: list[str], heavy: tuple[str, ...] = HEAVY) -> list[str]:
    """Which heavy packages a fresh interpreter holds after importing `modules`."""
    code = f"import importlib, sys\nfor m in {modules!r}: importlib.import_module(m)\n"
    code += f"print(*sorted(set({heavy!r}) & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert out.returncode == 0, out.stderr
    return out.stdout.split()


def test_a_server_with_a_store_of_its_own_loads_no_driver_of_another() -> None:
    modules = ["server.node", "server.app", "server.cli.serve"]
    assert heavy_after_importing(modules, ("psycopg", "psycopg_pool")) == []


def test_server_modules_load_without_torch() -> None:
    assert heavy_after_importing(modules_below("server")) == []


@pytest.mark.parametrize(
    "module", ["pipelines.protocol.params", "pipelines.protocol.frames", "models.registry", "pipelines.fake.__main__"]
)
def test_modules_shared_with_the_node_load_without_torch(module: str) -> None:
    assert heavy_after_importing([module]) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_that_is_served_imports_tests_or_benchmarks(package: str) -> None:
    offenders = []
    for file in (ROOT / package).rglob("*.py"):
        for number, line in enumerate(file.read_text().splitlines(), 1):
            words = line.split()
            if len(words) > 1 and words[0] in ("import", "from") and words[1].split(".")[0] in ("tests", "benchmarks"):
                offenders.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()}")
    assert offenders == []


def test_one_file_names_the_libraries_of_devices() -> None:
    """Besides training, which is not served: another kind of device is one class there."""
    named = re.compile(r"torch\.(cuda|xpu|mps|mtia|version)\b")
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py") if "shapes" not in file.parts]
    offenders = [str(file.relative_to(ROOT)) for file in files if named.search(file.read_text())]
    assert offenders == ["models/accelerator.py"]


def test_only_rooms_that_find_or_measure_devices_or_tell_the_operator_name_their_makers() -> None:
    """Neither models nor pipelines, nor what is served: `models/accelerator.py` does without, too."""
    named = re.compile(r"nvidia|\bnvml|\bamd\b|\brocm|\bintel\b|radeon|geforce|\bh200\b", re.IGNORECASE)
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py") if "shapes" not in file.parts]
    code = {str(file.relative_to(ROOT)): _without_prose(file.read_text()) for file in files}
    offenders = sorted(name for name, text in code.items() if named.search(text))
    assert "server/workers/devices.py" in offenders
    assert [
        name for name in offenders if not name.startswith(("server/bench/", "server/cli/", "server/workers/"))
    ] == []


def _without_prose(source: str) -> str:
    """Code without comments and docstrings, which may say where something was measured."""
    source = re.sub(r'"""(.*?)"""', "", source, flags=re.DOTALL)
    return re.sub(r"(^|\s)#[^\n]*", "", source)


def broken_contracts(folder: Path) -> str:
    """What import-linter says about the packages in `folder`; empty if every contract holds.

    In a process of its own: the checker reconfigures logging and finds packages by the interpreter's path.
    """
    program = (
        "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=60)
    assert not done.stderr
    return done.stdout if done.returncode else ""


def test_the_import_contracts_hold() -> None:
    assert broken_contracts(ROOT) == ""


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("models/tuning.py", "import pipelines.protocol.params", "models is not allowed to import pipelines"),
        ("pipelines/engine/cost.py", "import pipelines.families.pool", "pipelines.engine is not allowed to import"),
        ("pipelines/families/pool.py", "import pipelines.worker.warmup", "pipelines.families is not allowed to import"),
        ("pipelines/new.py", "", "- pipelines.new"),
        ("server/jobs/live.py", "import server.api.wire", "server.jobs is not allowed to import server.api"),
        ("server/routes/openai.py", "import server.node", "server.routes is not allowed to import server.node"),
    ],
)
def test_an_import_against_a_contract_is_found(tmp_path: Path, file: str, line: str, said: str) -> None:
    for source in (file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        copy = tmp_path / source.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, copy)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / file).open("a") as extended:
        extended.write(f"\n{line}\n")
    assert said in broken_contracts(tmp_path)
