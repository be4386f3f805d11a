"""LoRAs on the node's disk: named by content, private, bounded."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from models.adapter_files import AdapterError
from server.files.adapter_store import ABANDONED_S, IN_USE_S, AdapterStore
from tests.server.files.lora_files import lora_bytes, write_lora


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def names(store: AdapterStore) -> set[str]:
    return {path.name for path in store.folder.iterdir()}


def test_equal_files_are_kept_once_under_their_hash_for_their_owner_alone(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "adapters", 1 << 20)
    first, second = (store.copy(write_lora(tmp_path / name)) for name in ("a.safetensors", "b.safetensors"))
    assert first == second == f"{hashlib.sha256(lora_bytes()).hexdigest()}.safetensors"
    assert names(store) == {first}
    assert (store.folder / first).stat().st_mode & 0o777 == 0o600
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert store.has(first)
    assert not store.has("0" * 64 + ".safetensors")


def test_what_is_no_lora_leaves_nothing_behind(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "adapters", 1 << 20)
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(AdapterError):
        store.copy(tmp_path / "bad.safetensors")
    assert names(store) == set()


def test_beyond_its_size_the_least_recently_used_go_but_none_in_use(tmp_path: Path) -> None:
    clock = Clock()
    store = AdapterStore(tmp_path / "adapters", int(2.5 * len(lora_bytes())), clock)

    def copy(seed: int) -> str:
        return store.copy(write_lora(tmp_path / "source.safetensors", seed))

    kept = [copy(seed) for seed in range(3)]
    assert names(store) == set(kept), "all were used just now"
    clock.now += IN_USE_S + 1
    assert store.has(kept[0])
    clock.now += IN_USE_S + 1
    newest = copy(3)
    assert names(store) == {kept[0], newest}


def test_rests_of_killed_fetches_go(tmp_path: Path) -> None:
    clock = Clock()
    store = AdapterStore(tmp_path / "adapters", 1 << 20, clock)
    rest = store.new_file()
    clock.now = rest.stat().st_mtime + ABANDONED_S + 1
    kept = store.copy(write_lora(tmp_path / "source.safetensors"))
    assert names(store) == {kept}
