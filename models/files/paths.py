"""Paths as somebody typed them: what lies there, or in one sentence why nothing does. No torch."""

from __future__ import annotations

import difflib
import os
from pathlib import Path


def typed(text: str) -> Path:
    """The path, absolute; links are left as they are: in a Hugging Face cache they alone have a file's name."""
    return Path(os.path.abspath(os.path.expanduser(text)))


def exists(text: str) -> bool:
    """Whether anything is there; False, too, for what no file can be called and for what may not be looked at."""
    return bool(text) and os.path.exists(os.path.expanduser(text))


def why_absent(text: str) -> str:
    """`there is no X; did you mean Y?`, or what is amiss on the way there."""
    path = Path(os.path.expanduser(text))
    try:
        if path.is_symlink():
            return f"{text} is a link to {path.readlink()}, which is not there"
        return f"there is no {text}{_nearest(path)}"
    except PermissionError as exc:
        return f"{text} cannot be looked at: permission denied for {exc.filename}"
    except (OSError, ValueError):
        return f"there is no {text}"


def has_near(text: str) -> bool:
    """Whether something in the same folder has almost this name."""
    path = Path(text)
    return path.parent.is_dir() and bool(_close(path))


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        here = next(parent for parent in path.parents if parent.is_dir())
        return f": there is no folder {here / path.relative_to(here).parts[0]}"
    close = _close(path)
    return f"; did you mean {path.parent / close[0]}?" if close else ""


def _close(path: Path) -> list[str]:
    names = sorted(entry.name for entry in path.parent.iterdir() if entry.name != path.name)
    return difflib.get_close_matches(path.name, names, 1, cutoff=0.7)
