"""A step of building: links among the packages' files go into an archive as small files that hold the link's text.

That is how git writes links where they cannot be made; `models.files.folder.part_in` follows them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGES = ("server", "pipelines", "models")


class LinksAsFiles(BuildHookInterface[Any]):
    """Runs before a wheel or a source archive is written."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        self._texts = tempfile.TemporaryDirectory()
        root = Path(self.root)
        links = (path for package in PACKAGES for path in (root / package).rglob("*") if path.is_symlink())
        for number, link in enumerate(sorted(links)):
            text = Path(self._texts.name) / str(number)
            text.write_text(str(link.readlink()))
            build_data["force_include"][str(text)] = str(link.relative_to(root))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            self._texts.cleanup()
