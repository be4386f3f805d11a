"""Files on other machines are read, once and in order, instead of mapped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from models import loading, part
from models.checkpoint import open_checkpoint
from models.components import FluxComponents
from models.files.mounts import is_remote
from models.loading import PartCache
from models.registry import ModelSpec

TABLE = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / {0}/nfs rw - nfs4 nas:/models rw,vers=4.2
31 22 0:41 / {0}/nfs/local\\040disk rw shared:7 master:1 - xfs /dev/sdb rw
32 22 0:42 / {0}/bucket rw - fuse.gcsfuse bucket rw
33 22 0:43 / {0}/usb rw - fuseblk /dev/sdc1 rw
"""


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("here/a", False), ("nfs/a", True), ("nfs/deep/er/a", True), ("nfs/local disk/a", False), ("nfs2/a", False),
        ("bucket/a", True), ("usb/a", False), ("link", True),
    ],
)  # fmt: skip
def test_the_table_of_mounts_tells_what_is_remote(tmp_path: Path, place: str, expected: bool) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nfs" / "a")
    table = tmp_path / "mountinfo"
    table.write_text(TABLE.format(tmp_path))
    assert is_remote(tmp_path / place, table) is expected
    assert not is_remote(tmp_path / place, tmp_path / "none")


@pytest.mark.parametrize("why", ["asked", "remote"])
def test_what_is_not_to_be_mapped_is_read_with_progress_on_its_way_to_the_device(
    tiny: FluxComponents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    tiny.pipeline().save_pretrained(tmp_path / "tiny")
    monkeypatch.setattr(part, "mapped", lambda files: pytest.fail("mapped"))  # looking at it reads no weights either
    checkpoint = open_checkpoint(ModelSpec("tiny", str(tmp_path / "tiny"), max_sequence_length=16))
    monkeypatch.setattr(loading, "is_remote", lambda file: why == "remote")
    read: list[tuple[str, float]] = []
    device = torch.device("meta")  # any but the host, where nothing is ever mapped
    parts = loading._Parts(
        checkpoint, device, torch.float32, lambda *at: read.append(at), PartCache(maps=why == "remote"), "none", {}
    )
    passing = max(each.loaded_bytes(torch.float32) for each in checkpoint.parts.values())
    assert parts.host_bytes() == passing, "one part at a time passes through the host's memory"
    assert parts.load("transformer").device.type == "meta"
    fractions = [fraction for _, fraction in read]
    assert fractions == sorted(fractions)
    assert len(fractions) > 3


def test_local_files_are_mapped(tiny: FluxComponents, tmp_path: Path) -> None:
    tiny.pipeline().save_pretrained(tmp_path / "tiny")
    checkpoint = open_checkpoint(ModelSpec("tiny", str(tmp_path / "tiny"), max_sequence_length=16))
    assert PartCache().maps(checkpoint.parts["vae"])


def test_modulation_that_stays_on_the_host_is_counted_there(tiny: FluxComponents, tmp_path: Path) -> None:
    tiny.pipeline().save_pretrained(tmp_path / "tiny")
    checkpoint = open_checkpoint(ModelSpec("tiny", str(tmp_path / "tiny"), max_sequence_length=16))
    text, more = (
        loading._Parts(
            checkpoint, torch.device("meta"), torch.float32, lambda *at: None, PartCache(), offload, {}
        ).host_bytes()
        for offload in ("text", "text+modulation")
    )
    modulation = sum(
        m.linear.weight.nbytes
        for n, m in tiny.transformer.named_modules()
        if re.search(r"norm(1|1_context|_out)?$", n) and hasattr(m, "linear")
    )
    assert more - text == pytest.approx(modulation, rel=0.01)
