"""What several checkpoints need of one device together, by arithmetic. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from models.counts import AnyArchitecture, counts_of
from models.errors import LoadError
from models.files.folder import part_in
from models.files.headers import TensorEntry, read_header
from models.files.weights import identity, weight_files
from models.helpers import brought_bytes, helper_bytes
from models.memory import Need, Preset, need, part_bytes, presumed_architecture
from models.registry import ModelSpec
from models.single.contents import contents
from models.single.header import header_of, is_packed, loaded_bytes

SIZES = ((1024, 1024), (2368, 1792))
"""Pictures to count for: what most ask for, and the largest of v1.1-ultra."""


def need_together(
    specs: Sequence[ModelSpec], preset: Preset, width: int, height: int, held_bytes: int | None = None
) -> Need:
    """What a worker that serves all of these takes to draw one picture at a time. Equal parts are held once.

    Args: specs: at least one that draws; what only helps others counts as far as `helper_bytes` knows its size.
        held_bytes: the most that it holds at once (`--memory-gb`), though never less than one checkpoint.
    Raises: LoadError, KeyError if an architecture cannot be read.
    """
    architectures = {spec: presumed_architecture(spec) for spec in specs if spec.draws}
    parts: dict[object, int] = {}
    alone, needs = [], []
    for spec, arch in architectures.items():
        stored = replace(preset, bits=stored_bits(spec, counts_of(arch).transformer))
        sizes = part_bytes(arch, stored)
        parts |= {_key(spec, arch, name): size for name, size in sizes.items()}
        alone.append(sum(sizes.values()))
        needs.append(need(arch, stored, width, height))
    weights = sum(parts.values()) + helping_bytes(specs)
    if held_bytes is not None:
        weights = min(weights, max(held_bytes, *alone))
    working, host, tight = (max(getattr(each, of) for each in needs) for of in ("working", "host", "tight"))
    return Need(weights, working, host, tight)


def helping_bytes(specs: Sequence[ModelSpec]) -> int:
    """The weights of those that never draw, and of what the others bring along to help them. Raises: LoadError."""
    return sum(brought_bytes(spec) if spec.draws else helper_bytes(spec) or 0 for spec in specs)


def stored_bits(spec: ModelSpec, values: int) -> float:
    """Bits a weight of a transformer that stays as its files store it; 16 if they do not pack it; a LoRA
    then lies beside. Raises: LoadError."""
    entries = _transformer_entries(spec)
    if not any(map(is_packed, entries)):
        return 16
    beside = 0 if spec.adapter is None else Path(spec.adapter).stat().st_size
    return 8 * (beside + sum(loaded_bytes(entry) for entry in entries)) / values


def _transformer_entries(spec: ModelSpec) -> list[TensorEntry]:
    """What files of this machine hold of it; nothing for UNets, repositories and random weights. Raises: LoadError."""
    if spec.family == "sdxl":
        return []
    if spec.file is not None:
        header = header_of(spec.file)
        held = contents(header).get("transformer")
        if held is None:
            raise LoadError(f"{spec.file.name} holds no transformer.")
        return [entry for name, entry in header.items() if name.startswith(held.prefix)]
    folder = part_in(Path(spec.source), "transformer")
    if not Path(spec.source).is_absolute() or not folder.is_dir():
        return []
    return [entry for file in weight_files(folder) for entry in read_header(file).values()]


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
