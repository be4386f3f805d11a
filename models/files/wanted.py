"""Which files of a repository serving reads, by their names: no pickles, no second copy of weights. No torch."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from models.files.folder import INDEXES
from models.files.weights import PREFERRED, STEMS

_SMALL = (".json", ".txt", ".model", ".jinja")
"""Configurations, vocabularies and chat templates."""


def small(parts: Collection[str] | None) -> list[str]:
    """Patterns of all but the weights. Args: parts: as in `needed`."""
    folders = ["*/"] if parts is None or parts else [""]
    return [*INDEXES, *(f"{folder}*{ending}" for folder in folders for ending in _SMALL)]


def parts_of(index: dict[str, Any]) -> list[str]:
    """The folders that an index names; in a modular one each comes with where it is loaded from."""
    return [name for name, made in index.items() if isinstance(made, list) and len(made) in (2, 3) and made[0]]


def needed(names: Collection[str], parts: Collection[str]) -> list[str]:
    """Of all files of a repository those that serving reads.

    Args: parts: folders that its model_index.json names; none for a model in no folder of its own.
    """
    kept: dict[str, set[str]] = {part: set() for part in parts or ("",)}
    for name in names:
        folder, _, file = name.rpartition("/")
        if folder in kept:
            kept[folder].add(file)
    chosen = ([name for name in INDEXES if name in names] or [INDEXES[0]]) if parts else []
    for folder, files in kept.items():
        own = [file for file in sorted(files) if file.endswith(_SMALL)] + _weights(files)
        chosen += [f"{folder}/{file}" if folder else file for file in own]
    return chosen


def _weights(files: set[str]) -> list[str]:
    """As `models.files.weights.weight_files` chooses: plain ones before variants, an index's shards before one file."""
    for variant in ("", *(f".{name}" for name in PREFERRED)):
        for stem in STEMS:
            shards = re.compile(
                rf"{stem}({re.escape(variant)}-\d+-of-\d+|-\d+-of-\d+{re.escape(variant)})\.safetensors"
            )
            found = sorted(file for file in files if shards.fullmatch(file))
            if found:
                return found
        for stem in STEMS:
            if f"{stem}{variant}.safetensors" in files:
                return [f"{stem}{variant}.safetensors"]
    return []
