"""What this release is and what changed in it, as `CHANGELOG.md` says."""

from __future__ import annotations

from pathlib import Path

from server.settings import CHECKOUT

# A wheel carries its copy inside the package; in a checkout and in an image it lies beside `server/`.
_PLACES = (Path(__file__).parents[1] / "CHANGELOG.md", CHECKOUT / "CHANGELOG.md")


def changelog() -> str:
    """All of it, in Markdown, the newest first. Raises: FileNotFoundError if it was not shipped."""
    return next((place for place in _PLACES if place.is_file()), _PLACES[-1]).read_text()


def newest_changes() -> str:
    """The topmost section: what is new in the code that runs."""
    sections = changelog().split("\n## ")
    return f"## {sections[1].strip()}\n" if len(sections) > 1 else ""
