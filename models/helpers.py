"""What the weights of checkpoints take that never draw: Redux priors, ControlNets, depth estimators. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from models.errors import LoadError
from models.files.folder import part_in
from models.files.headers import read_header
from models.files.weights import weight_files
from models.offers import cached_folder
from models.registry import ModelSpec, Variant, own_estimator

_PARTS: Mapping[Variant, tuple[str, ...]] = {
    "redux": ("image_encoder", "image_embedder"),
    "controlnet": ("",),
    "depth-estimator": ("",),
}
"""Folders of weights; "" is the checkpoint's own."""

_SIGLIP_SO400M, _REDUX_EMBEDDER, _DEPTH_SMALL = 428_225_600, 64_503_808, 24_785_089
"""Parameters, held to the modules by `tests/models/test_helpers.py`."""
_PUBLISHED = {
    "black-forest-labs/FLUX.1-Redux-dev": _SIGLIP_SO400M + _REDUX_EMBEDDER,
    "depth-anything/Depth-Anything-V2-Small-hf": _DEPTH_SMALL,
}
"""By repository, for what is not on this machine."""


def helper_bytes(spec: ModelSpec) -> int | None:
    """What one takes of the device in half precision: never quantised, never waiting on the host.

    By its files, or of a repository that is not here whole by what was published. What it computes is small beside a
    step and not counted. Returns: None if nothing here tells. Raises: LoadError for a folder that cannot be read.
    """
    folder = Path(spec.source) if Path(spec.source).is_absolute() else cached_folder(spec)
    try:
        if folder is not None:
            return sum(_stored_bytes(part_in(folder, name)) for name in _PARTS[spec.variant])
    except LoadError:  # a download that broke off
        if spec.source not in _PUBLISHED:
            raise
    published = _PUBLISHED.get(spec.source)
    return None if published is None else 2 * published


def brought_bytes(spec: ModelSpec) -> int:
    """What the estimator takes that a checkpoint brings in its own folder, if it does. Raises: LoadError."""
    folder = own_estimator(spec)
    return 0 if folder is None else _stored_bytes(folder)


def _stored_bytes(part: Path) -> int:
    """Of all its tensors in half precision. Raises: LoadError."""
    entries = (entry for file in weight_files(part) for entry in read_header(file).values())
    return 2 * sum(math.prod(entry.shape) for entry in entries)
