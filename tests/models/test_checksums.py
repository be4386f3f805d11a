"""What was fetched is compared once, by whoever comes first: here without a hub."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from models.checkpoint_files import adopt, locate
from models.errors import LoadError
from models.registry import REGISTRY, ModelSpec

SHAPES = REGISTRY["flux-shapes"]
TINY = replace(SHAPES, source="owner/tiny")
COMMIT = "0" * 40
VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository's folder of a cache as the hub's client leaves it, offline; its VAE was not compared yet."""
    repo = tmp_path / "hub" / "models--owner--tiny"
    snapshot = repo / "snapshots" / COMMIT
    shutil.copytree(SHAPES.source, snapshot)
    (repo / "blobs").mkdir()
    blob = repo / "blobs" / hashlib.sha256((snapshot / VAE).read_bytes()).hexdigest()
    (snapshot / VAE).rename(blob)
    (snapshot / VAE).symlink_to(blob)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / f".fluxserve-{COMMIT}").write_text(VAE)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return repo


def flip_last_byte(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_a_process_that_ended_before_it_compared_leaves_that_to_the_next(cache: Path) -> None:
    flip_last_byte(cache / "snapshots" / COMMIT / VAE)
    with pytest.raises(LoadError, match=f"model flux-shapes: {VAE} arrived with another checksum than the hub's"):
        locate(TINY)
    assert not (cache / "snapshots" / COMMIT / VAE).is_symlink()
    assert not list((cache / "blobs").iterdir())


def test_what_was_compared_is_not_compared_again(cache: Path) -> None:
    folder = locate(TINY)
    assert not (cache / f".fluxserve-{COMMIT}").exists()
    flip_last_byte(folder / VAE)
    assert locate(TINY) == folder


def noted(folder: Path, name: str, checksum: str) -> None:
    """As `hf download --local-dir` does beside the files."""
    note = folder / ".cache" / "huggingface" / "download" / f"{name}.metadata"
    note.parent.mkdir(parents=True)
    note.write_text(f"{COMMIT}\n{checksum}\n1790000000.0\n")


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the client's note of its VAE."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "fetched"
    shutil.copytree(SHAPES.source, folder)
    noted(folder, VAE, hashlib.sha256((folder / VAE).read_bytes()).hexdigest())
    return folder


def test_a_folder_that_was_fetched_elsewhere_is_held_to_the_checksums_that_it_brings(fetched: Path) -> None:
    assert (adopt(TINY, fetched) / VAE).read_bytes() == (fetched / VAE).read_bytes()


def test_a_folder_that_changed_on_its_way_is_refused(fetched: Path, tmp_path: Path) -> None:
    flip_last_byte(fetched / VAE)
    with pytest.raises(LoadError, match=f"{VAE} has another checksum than the hub's"):
        adopt(TINY, fetched)
    assert not (tmp_path / "hub" / "models--owner--tiny" / "refs").exists()


def test_a_linked_cache_is_held_to_its_blobs_names(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "other"))
    other: ModelSpec = replace(SHAPES, source="owner/other")
    adopt(other, cache / "snapshots" / COMMIT)
    shutil.rmtree(tmp_path / "other")
    flip_last_byte(cache / "snapshots" / COMMIT / VAE)
    with pytest.raises(LoadError, match="another checksum"):
        adopt(other, cache / "snapshots" / COMMIT)
