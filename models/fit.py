"""What several checkpoints need of one device together, by arithmetic. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from models.counts import AnyArchitecture
from models.errors import LoadError
from models.files.folder import part_in
from models.files.weights import identity, weight_files
from models.memory import Need, Preset, need, part_bytes, presumed_architecture, working_bytes
from models.registry import ModelSpec
from models.single.contents import contents
from models.single.header import header_of, loaded_bytes

SIZES = ((1024, 1024), (2368, 1792))
"""Pictures to count for: what most ask for, and the largest of v1.1-ultra."""


def need_together(
    specs: Sequence[ModelSpec], preset: Preset, width: int, height: int, held_bytes: int | None = None
) -> Need:
    """What a worker that serves all of these takes to draw one picture at a time. Equal parts are held once.

    Args: specs: at least one; what only helps other checkpoints is not counted. held_bytes: the most that it holds
        at once (`--memory-gb`), though never less than one checkpoint.
    Raises: LoadError, KeyError if an architecture cannot be read.
    """
    architectures = {spec: presumed_architecture(spec) for spec in specs if spec.draws}
    parts: dict[object, int] = {}
    alone = []
    for spec, arch in architectures.items():
        counted = part_bytes(arch, preset)
        sizes = counted | ({} if preset.is_streamed else _stored_transformer(spec))
        parts |= {_key(spec, arch, name): size for name, size in sizes.items()}
        alone.append(sum(sizes.values()))
    weights = sum(parts.values())
    if held_bytes is not None:
        weights = min(weights, max(held_bytes, *alone))
    working = max(working_bytes(arch, preset, width, height) for arch in architectures.values())
    host = max(need(arch, preset, width, height).host for arch in architectures.values())
    return Need(weights, working, host)


def _stored_transformer(spec: ModelSpec) -> dict[str, int]:
    """What the transformer of a single file takes: packed weights stay as they are stored. Raises: LoadError."""
    if spec.file is None:
        return {}
    header = header_of(spec.file)
    held = contents(header).get("transformer")
    if held is None:
        raise LoadError(f"{spec.file.name} holds no transformer.")
    own = [entry for name, entry in header.items() if name.startswith(held.prefix)]
    return {"transformer": sum(loaded_bytes(entry) for entry in own)}


def _key(spec: ModelSpec, arch: AnyArchitecture, part: str) -> object:
    """Equal for what a worker holds once: the same files, or the same part of published checkpoints to be fetched."""
    if part == "transformer" or spec.source.startswith("random:"):
        return (spec.name, part)
    folder = part_in(Path(spec.source), part)
    if not folder.is_dir():
        return (part, repr({name: asdict(arch).get(name) for name in ("clip", "t5", "text", "vae")}))
    try:
        return (part, *map(identity, weight_files(folder)))
    except (LoadError, OSError):
        return (spec.name, part)
