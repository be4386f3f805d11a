"""The Chromium that a package of npm carries: the same one on every machine, and nothing to install on the system."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

IN_NPM = sys.platform == "linux" and platform.machine() == "x86_64"
WHY_NOT = "npm carries Chromium for Linux on x86-64 only"
JS = Path(__file__).parent / "compatibility" / "js"
SYSTEM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def unpacking() -> dict[str, str]:
    """What the environment must say so that the package unpacks it beside itself, once."""
    folder = JS / "node_modules" / ".cache"
    folder.mkdir(parents=True, exist_ok=True)
    return {"TMPDIR": str(folder)}


def chromium_path() -> Path | None:
    """npm's, or on other machines the system's; None without one."""
    if not IN_NPM or not (JS / "node_modules" / "@sparticuz").exists():
        return next(map(Path, filter(None, map(shutil.which, SYSTEM))), None)
    script = 'import chromium from "@sparticuz/chromium"; console.log(await chromium.executablePath())'
    command = ["node", "--input-type=module", "-e", script]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=JS, env=os.environ | unpacking())
    return Path(told.stdout.strip())
