"""Writes what a release is made of as CycloneDX 1.6: the packages of requirements.lock as they are installed here.

    python .ci/bill_of_materials.py [FILE]        (make sbom)

Times and serial numbers are left out, so that the same lock gives the same file.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent


def pins(lock: Path) -> dict[str, str]:
    """Name -> version, as the lock says for this platform."""
    lines = [line.strip() for line in lock.read_text().splitlines()]
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {
        each.name: str(each.specifier).removeprefix("==")
        for each in wanted
        if not each.marker or each.marker.evaluate()
    }


def component(name: str, version: str) -> dict[str, Any]:
    """One package, with the licence that its metadata names."""
    found: dict[str, Any] = {
        "type": "library",
        "bom-ref": f"pkg:pypi/{normal(name)}@{version}",
        "name": name,
        "version": version,
        "purl": f"pkg:pypi/{normal(name)}@{version}",
    }
    if licence := _licence(name):
        found["licenses"] = [{"license": {"name": licence}}]
    return found


def normal(name: str) -> str:
    """A package's name as indexes write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _licence(name: str) -> str | None:
    try:
        about = distribution(name).metadata
    except PackageNotFoundError:
        return None
    stated = about.get("License-Expression") or about.get("License") or ""
    classified = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier", []) if line.startswith("License")]
    return stated if stated and "\n" not in stated else next(iter(classified), None)


def bill() -> dict[str, Any]:
    """The whole document."""
    version = re.search(r'^VERSION = "(.+)"', (ROOT / "server" / "settings.py").read_text(), re.MULTILINE)
    assert version is not None
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "fluxserve", "version": version[1]}},
        "components": [component(name, pin) for name, pin in sorted(pins(ROOT / "requirements.lock").items())],
    }


def main() -> None:
    text = json.dumps(bill(), indent=1) + "\n"
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
