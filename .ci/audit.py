"""Checks the installed packages without a network; exits 1 with a line a fault.

    python .ci/audit.py        (make audit)

What is installed is what the locks pin, fits together, is what its own wheel said it would be, file by file, and is
not older than the first version without a hole that we know of. It knows no advisory that came later than this file:
where an advisory database can be reached, ask it, too (`pip-audit -r requirements.lock`).
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from bill_of_materials import ROOT, pins
from packaging.version import Version

FLOORS = {
    "pillow": ("12.2", "decompression bomb in a format that is not ours, GHSA-whj4-6x5x-4v2j"),
    "diffusers": ("0.38.0", "remote code by custom_pipeline, CVE-2026-44513"),
    "torch": ("2.10", "weights_only was no sandbox, CVE-2025-32434 and CVE-2026-24747"),
    "starlette": ("0.49.1", "quadratic Range header, CVE-2025-62727"),
    "h11": ("0.16.0", "request smuggling by chunked bodies, CVE-2025-43859"),
    "python-multipart": ("0.0.18", "a boundary's ends read byte by byte, CVE-2024-53981"),
    "protobuf": ("6.31.1", "endless recursion, CVE-2025-4565"),
    "urllib3": ("2.6.0", "decompression bombs, CVE-2025-66418 and CVE-2025-66471"),
    "requests": ("2.32.4", "a password of .netrc for another host, CVE-2024-47081"),
    "jinja2": ("3.1.6", "a way out of the sandbox, CVE-2025-27516"),
    "mcp": ("1.23.0", "DNS rebinding by default, CVE-2025-66416"),
    "filelock": ("3.20.1", "a symbolic link in the lock's place, CVE-2025-68146"),
    "fonttools": ("4.60.2", "files written where a font says, CVE-2025-66034"),
    "pyjwt": ("2.10.1", "issuer compared by part, CVE-2024-53861"),
}


def pinned_elsewhere(lock: Path) -> Iterator[str]:
    """Packages whose installed version is not the lock's."""
    for name, pin in pins(lock).items():
        try:
            installed = distribution(name).version
        except PackageNotFoundError:
            yield f"{name}=={pin} is locked and not installed"
            continue
        if installed.partition("+")[0] != pin:
            yield f"{name} {installed} is installed, and {pin} is locked"


def too_old() -> Iterator[str]:
    """Packages with a hole that was known when this was written."""
    for name, (floor, hole) in FLOORS.items():
        try:
            installed = distribution(name).version
        except PackageNotFoundError:
            continue
        if Version(installed) < Version(floor):
            yield f"{name} {installed} is older than {floor}: {hole}"


def changed_files(name: str) -> Iterator[str]:
    """Files of a package that are not what its wheel's record says."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return
    for file in found.files or ():
        if file.hash is not None and _digest(found, str(file), file.hash.mode) not in (None, file.hash.value):
            yield f"{name}: {file} has been changed since it was installed"


def _digest(found: Distribution, file: str, mode: str) -> str | None:
    path = Path(str(found.locate_file(file)))
    if not path.is_file():
        return None
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, mode).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def unfit() -> Iterator[str]:
    """What pip says of packages that do not fit together."""
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    if done.returncode:
        yield from done.stdout.splitlines()


def main() -> None:
    locks = (ROOT / "requirements.lock", ROOT / "requirements-dev.lock")
    names = sorted({name for lock in locks for name in pins(lock)})
    faults = [fault for lock in locks for fault in pinned_elsewhere(lock)]
    faults += [*too_old(), *unfit(), *(fault for name in names for fault in changed_files(name))]
    print("\n".join(faults) if faults else f"audit: {len(names)} packages are as locked and as their wheels said")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
