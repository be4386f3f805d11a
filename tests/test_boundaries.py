"""The node process never imports torch: everything it imports must load without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate")
ROOT = Path(__file__).parent.parent


def modules_below(package: str) -> list[str]:
    """Dotted names of every module in a package folder."""
    files = sorted((ROOT / package).rglob("*.py"))
    return [".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for f in files]


def heavy_after_importing(modules: list[str]) -> list[str]:
    """Which heavy packages a fresh interpreter holds after importing `modules`."""
    code = f"import importlib, sys\nfor m in {modules!r}: importlib.import_module(m)\n"
    code += f"print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert out.returncode == 0, out.stderr
    return out.stdout.split()


def test_server_modules_load_without_torch() -> None:
    assert heavy_after_importing(modules_below("server")) == []


@pytest.mark.parametrize("module", ["pipelines.params", "pipelines.protocol", "models.registry"])
def test_modules_shared_with_the_node_load_without_torch(module: str) -> None:
    assert heavy_after_importing([module]) == []


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [("pipelines", ("server",)), ("models", ("server", "pipelines")), ("server", ("tests", "benchmarks"))],
)
def test_imports_point_down(package: str, forbidden: tuple[str, ...]) -> None:
    offenders = []
    for file in (ROOT / package).rglob("*.py"):
        for number, line in enumerate(file.read_text().splitlines(), 1):
            words = line.split()
            if len(words) > 1 and words[0] in ("import", "from") and words[1].split(".")[0] in forbidden:
                offenders.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()}")
    assert offenders == []
