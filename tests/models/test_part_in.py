"""Parts that lie in another checkpoint, where files cannot be links."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from models.files.folder import LONGEST_PATH, part_in
from models.files.weights import weight_files
from models.registry import REGISTRY


def test_a_file_with_a_links_text_leads_where_the_link_would(tmp_path: Path) -> None:
    shared = tmp_path / "base" / "vae"
    shared.mkdir(parents=True)
    (tmp_path / "sibling").mkdir()
    (tmp_path / "sibling" / "vae").write_text("../base/vae")
    assert part_in(tmp_path / "sibling", "vae") == shared


def test_a_shard_with_a_links_text_is_the_file_that_the_link_would_lead_to(tmp_path: Path) -> None:
    """As in the wheel: flux2-shapes' codec is flux-shapes', beside statistics of its own."""
    part = tmp_path / "vae"
    shutil.copytree(REGISTRY["flux2-shapes"].source + "/vae", part, symlinks=True)
    (linked,) = (path for path in part.iterdir() if path.is_symlink())
    codec = Path(REGISTRY["flux-shapes"].source) / "vae" / "diffusion_pytorch_model.safetensors"
    linked.unlink()
    linked.write_text(os.path.relpath(codec, part))
    first, second = weight_files(part)
    assert first == codec.resolve()
    assert second.parent == part


@pytest.mark.parametrize("content", [b"../nowhere", b"\xff\xfe", b"a\0b", b"", b"x" * 300, b"../" * LONGEST_PATH])
def test_any_other_file_is_left_as_a_part_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sibling").mkdir()
    part = tmp_path / "sibling" / "vae"
    part.write_bytes(content)
    assert part_in(tmp_path / "sibling", "vae") == part


def test_a_folder_and_what_is_missing_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    for name in ("vae", "transformer", ""):
        assert part_in(tmp_path, name) == tmp_path / name
