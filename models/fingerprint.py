"""Whether what draws is still what drew: code, libraries and weights as one short text. No torch, no file is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from models.registry import ModelSpec

LIBRARIES = ("diffusers", "pillow", "torch", "torchao", "transformers")
CHECKOUT = Path(__file__).resolve().parent.parent
CODE = ("models", "pipelines", "server/files")
"""Folders whose modules make pictures."""


def fingerprint(specs: Iterable[ModelSpec], *settings: object) -> str:
    """Changes with every module, library, file of weights and setting given. Files count by name, size and time."""
    digest = hashlib.sha256()
    for fact in _facts(specs, settings):
        digest.update(repr(fact).encode() + b"\n")
    return digest.hexdigest()


def _facts(specs: Iterable[ModelSpec], settings: tuple[object, ...]) -> Iterator[object]:
    yield settings
    yield from ((name, _version(name)) for name in LIBRARIES)
    for folder in CODE:
        yield from _files(CHECKOUT / folder, "*.py")
    for spec in specs:
        yield spec
        for place in (spec.source, spec.transformer, spec.adapter):
            yield from _weights(place, spec.revision)


def _weights(place: str | None, revision: str | None) -> Iterator[object]:
    if place is None:
        return
    path = Path(place)
    if path.is_dir():
        yield from _files(path, "*")
    elif path.is_file():
        yield _described(path)
    else:
        yield _snapshot(place, revision)


def _snapshot(repo: str, revision: str | None) -> str | None:
    """Where the Hugging Face cache holds the repository, which names its commit; None if it does not."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repo, "model_index.json", revision=revision)
    except HFValidationError:
        return None  # `random:` and `fake:` have no files
    return found if isinstance(found, str) else None


def _files(folder: Path, pattern: str) -> Iterator[tuple[str, int, int]]:
    return (_described(path) for path in sorted(folder.rglob(pattern)) if path.is_file())


def _described(path: Path) -> tuple[str, int, int]:
    found = path.stat()
    return str(path), found.st_size, found.st_mtime_ns


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
