"""Which adapters are in memory, and what a request is told whose adapter cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models.accelerator import CpuAccelerator
from models.components import FluxComponents
from models.registry import REGISTRY
from pipelines.adapters.cache import AdapterCache
from pipelines.engine.acceleration import FLOAT8
from pipelines.engine.engine import Engine
from pipelines.families.flux1.runner import FluxRunner
from pipelines.families.pool import ModelPool
from pipelines.protocol import lookups
from pipelines.protocol.conditions import Adapter
from pipelines.protocol.frames import Failed, Finished
from tests.pipelines.adapters.loras import random_lora, save_diffusers
from tests.pipelines.driving import drain, make_engine, make_params, of, pictures, submit


def save_some(components: FluxComponents, folder: Path, count: int) -> int:
    """Files 0.safetensors, 1.safetensors, ... Returns: the bytes of one."""
    for index in range(count):
        save_diffusers(random_lora(components.transformer, 2, index), folder / f"{index}.safetensors")
    probe = AdapterCache(folder, 1 << 30)
    return probe.get(components, "0.safetensors").nbytes


def test_the_least_recently_used_goes_beyond_the_size(components: FluxComponents, tmp_path: Path) -> None:
    size = save_some(components, tmp_path, 3)
    hits, misses = lookups.counts().get("adapters", [0, 0])
    cache = AdapterCache(tmp_path, 2 * size)
    first = cache.get(components, "0.safetensors")
    second = cache.get(components, "1.safetensors")
    assert cache.get(components, "0.safetensors") is first
    cache.get(components, "2.safetensors")
    assert cache.nbytes == 2 * size
    assert cache.get(components, "0.safetensors") is first
    assert cache.get(components, "1.safetensors") is not second
    assert lookups.counts()["adapters"] == [hits + 2, misses + 4]


def test_an_unloaded_model_takes_its_adapters_along(components: FluxComponents, tmp_path: Path) -> None:
    save_some(components, tmp_path, 1)
    cache = AdapterCache(tmp_path, 1 << 30)
    cache.get(components, "0.safetensors")
    cache.forget("another")
    assert cache.nbytes > 0
    cache.forget(components.spec.name)
    assert cache.nbytes == 0


BAD = {
    "foreign.safetensors": "SDXL",
    "pickle.safetensors": "pickled weights",
    "gone.safetensors": "gone",
    "large.safetensors": "may take",
}


@pytest.fixture
def hostile(components: FluxComponents, tmp_path: Path) -> AdapterCache:
    size = save_some(components, tmp_path, 1)
    save_file({"lora_unet_input_blocks_1.lora_down.weight": torch.ones(2, 2)}, tmp_path / "foreign.safetensors")
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x04\x95 a pickle that runs things")
    save_diffusers(random_lora(components.transformer, 5, 0), tmp_path / "large.safetensors")
    return AdapterCache(tmp_path, size)


def test_a_bad_adapter_fails_its_request_at_its_place_and_nothing_else(
    components: FluxComponents, hostile: AdapterCache
) -> None:
    runner = FluxRunner(components, CpuAccelerator(), adapters=hostile)
    engine = make_engine(runner)
    good = (Adapter("0.safetensors"),)
    submit(engine, "good", make_params(adapters=good))
    for file in BAD:
        submit(engine, file, make_params(adapters=(*good, Adapter(file))))
    frames = drain(engine)
    assert of(frames, "good", Finished)
    for file, words in BAD.items():
        (failed,) = of(frames, file, Failed)
        assert isinstance(failed, Failed)
        assert failed.kind == "input_error"
        assert tuple(failed.loc) == ("loras", 1, "path")
        assert words in failed.message


def test_a_pool_counts_adapters_and_float8_weights_take_them_along(tmp_path: Path) -> None:
    class Float8Device(CpuAccelerator):
        has_float8 = True

    spec = REGISTRY["flux-shapes"]
    pool = ModelPool([spec], Float8Device(), adapters=AdapterCache(tmp_path, 1 << 30))
    transformer = pool.runner(spec.name).components.transformer
    save_diffusers(random_lora(transformer, 16, 1), tmp_path / "one.safetensors")
    pool.hold_float8()
    before = pool.weights()
    engine = Engine(pool.runner, CpuAccelerator(), choose_acceleration=pool.choose_acceleration)
    for level in ("none", "regular"):
        for name, adapters in (("plain", ()), ("adapted", (Adapter("one.safetensors"),))):
            wanted = {"width": 128, "height": 128, "acceleration": level, "adapters": adapters}
            submit(engine, f"{name}-{level}", make_params(model=spec.name, **wanted))
    frames = drain(engine)
    drawn = {
        job: pictures(frames, job)[0] for job in ("plain-none", "adapted-none", "plain-regular", "adapted-regular")
    }
    assert _distance(drawn["adapted-none"], drawn["adapted-regular"]) < _distance(
        drawn["adapted-none"], drawn["plain-none"]
    )
    assert not np.array_equal(drawn["adapted-none"], drawn["adapted-regular"])
    assert pool.runner(spec.name + FLOAT8) is not pool.runner(spec.name)
    assert pool.weights() - before == sum(p.nbytes for p in _tensors(pool, spec.name))


def _tensors(pool: ModelPool, model: str) -> list[torch.Tensor]:
    cache = pool._adapters
    return list(cache.get(pool.runner(model).components, "one.safetensors").tensors)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b.astype(float)).mean())
