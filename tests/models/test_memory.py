"""Counted memory against real modules: weights to the last parameter, activations by what is alive at the fullest."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPTextModel, T5EncoderModel

from models import cards, counts, memory
from models.accelerator import CpuAccelerator
from models.architectures import ARCHITECTURES
from models.arguments import resolve
from models.components import FluxComponents, weight_bytes
from models.errors import LoadError
from models.float8 import share
from models.loading import load
from models.memory import PRESETS, Preset, need, recommend
from models.placement import stream_from_host
from models.quantization import is_insensitive
from models.random_weights import _t5_config, clip_config
from models.registry import REGISTRY, TINY
from pipelines.families.flux1.encode import encode_prompt
from pipelines.families.flux1.packed import Compute, modulation_rows, modulation_width, packed_forward
from pipelines.families.layout import PackLayout

ROOT = Path(__file__).parents[2]
DEV = ARCHITECTURES["random:FLUX.1-dev"]


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def on_meta(build: Callable[[], nn.Module]) -> Any:
    """A module of full size without storage, in bfloat16."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            return build().eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


class Peak(TorchDispatchMode):
    """The most bytes of tensors alive at once that operations inside have made, views of the weights not counted."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._weights = {tensor.untyped_storage()._cdata for tensor in (*module.parameters(), *module.buffers())}
        self._sizes: dict[int, int] = {}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._sizes and storage._cdata not in self._weights:
                    self._sizes[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self._sizes.pop, storage._cdata, None)
        self.bytes = max(self.bytes, sum(self._sizes.values()))
        return result


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_every_parameter_is_counted(name: str) -> None:
    arch = ARCHITECTURES[name]
    transformer = on_meta(lambda: FluxTransformer2DModel(**arch.transformer))
    assert counts.transformer_parameters(arch.transformer) == parameters(transformer)
    assert counts.vae_parameters(arch.vae) == parameters(on_meta(lambda: AutoencoderKL(**arch.vae)))
    assert counts.clip_parameters(arch.clip) == parameters(on_meta(lambda: CLIPTextModel(clip_config(arch.clip))))
    assert counts.t5_parameters(arch.t5) == parameters(on_meta(lambda: T5EncoderModel(_t5_config(arch.t5))))
    shrunk = [
        module.weight.numel()
        for key, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and is_insensitive(key)
    ]
    assert sum(counts.counts_of(arch).blocks) == sum(shrunk)


def test_the_embedded_model_is_counted_from_its_files() -> None:
    arch = memory.presumed_architecture(resolve("flux-shapes"))
    transformer, vae = FluxTransformer2DModel(**arch.transformer), AutoencoderKL.from_config(arch.vae)
    assert counts.transformer_parameters(arch.transformer) == parameters(transformer)
    assert counts.vae_parameters(arch.vae) == parameters(vae)


def test_a_step_stays_below_its_estimate_and_not_far_below() -> None:
    transformer = on_meta(lambda: FluxTransformer2DModel(**DEV.transformer))
    text, image, width = 512, 4096, 3072

    def attend(query: Tensor, key: Tensor, value: Tensor, lengths: object) -> Tensor:
        return query.new_empty(query.shape[0], query.shape[1] * query.shape[2])

    def made(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    layout = PackLayout((text,), (image,), made(text + image, 1, 64, dtype=torch.complex64))
    modulation = made(1, modulation_width(transformer))
    with torch.no_grad(), Peak(transformer) as peak:
        packed_forward(transformer, layout, made(image, 64), made(text, width), modulation, Compute(attend))
    estimate = memory.step_bytes(DEV, 1024, 1024, text)
    assert 0.6 * estimate <= peak.bytes <= estimate


def test_a_decode_stays_below_its_estimate_and_not_far_below() -> None:
    vae = on_meta(lambda: AutoencoderKL(**DEV.vae))
    latents = torch.empty(1, 16, 128, 128, dtype=torch.bfloat16, device="meta")
    with torch.no_grad(), Peak(vae) as peak:
        vae.decode(latents, return_dict=False)
    estimate = memory.decode_bytes(DEV.vae, 1024, 1024)
    assert 0.6 * estimate <= peak.bytes <= estimate


@pytest.mark.parametrize(
    ("gib", "capability", "expected"),
    [
        (139, (9, 0), Preset("none", "none")),
        (40, (8, 0), Preset("none", "none")),
        (37, (8, 0), Preset("none", "none", replay=False)),
        (32, (12, 0), Preset("none", "text")),
        (24, (8, 9), Preset("none", "text+modulation")),
        (22, (8, 6), Preset("none", "text+modulation", replay=False)),
        (16, (8, 9), Preset("fp8", "text+modulation")),
        (16, (8, 6), Preset("none", "text+blocks")),
        (8, (8, 9), Preset("none", "text+blocks")),
        (4, (7, 5), None),
    ],
)
def test_the_roomiest_preset_that_fits_is_recommended(
    gib: int, capability: tuple[int, int], expected: Preset | None
) -> None:
    assert recommend(DEV, gib << 30, capability) == expected


def test_the_table_of_the_manual_is_what_is_counted() -> None:
    rows = (ROOT / "docs" / "operations.md").read_text().splitlines()
    for preset in (preset for preset in PRESETS if preset.replay):
        needs, less = need(DEV, preset), need(DEV, replace(preset, replay=False))
        label = f"`{preset.flags}`" if preset.flags else "none"
        (row,) = [row for row in rows if row.startswith(f"| {label} |")]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        counted = (needs.weights, needs.device, less.device, needs.host)
        assert cells[1:5] == [f"{n / 1e9:.1f} GB" for n in counted], row


def test_the_table_of_cards_is_what_is_counted() -> None:
    manual = (ROOT / "docs" / "operations.md").read_text()
    assert "\n".join(cards.markdown()) in manual
    assert "\n".join(cards.streamed_markdown()) in manual
    assert "\n".join(cards.short_markdown()) in (ROOT / "README.md").read_text()
    best = cards.best_fit(24_000_000_000)
    assert best is not None
    assert best.device == need(DEV, Preset("none", "text+modulation", replay=False)).device
    streamed = cards.best_fit(7_000_000_000)
    assert streamed is not None
    assert (streamed.file, streamed.flags) == ("bfloat16", "--offload text+blocks")
    counted = need(DEV, Preset("none", "text+blocks"))
    assert (streamed.device, streamed.host) == (counted.device, counted.host)
    assert cards.best_fit(3_000_000_000) is None


def test_counted_weights_are_what_a_gpu_allocated() -> None:
    report = ROOT / "benchmarks" / "results" / "h200-2026-11-27-kernels" / "report.json"
    (seen,) = {part["memory"]["allocated"] for part in _parts(json.loads(report.read_bytes())) if "load_s" in part}
    counted = need(DEV, PRESETS[0]).weights
    assert counted <= seen <= 1.005 * counted


def test_what_a_gpu_used_after_pictures_is_counted() -> None:
    """Recorded steps among it: 1.9 GB."""
    report = json.loads((ROOT / "benchmarks" / "results" / "h200-2026-11-27-replay" / "report.json").read_bytes())
    used = report["parts"]["ours"]["memory"]["used"]
    assert 0.99 * used <= need(DEV, PRESETS[0]).device <= 1.05 * used
    assert memory.recorded_bytes(DEV, PRESETS[0]) == pytest.approx(1.9e9, rel=0.01)
    assert memory.recorded_bytes(DEV, Preset("none", "none", bits=8.5)) == 0


def _parts(report: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object inside."""
    if isinstance(report, dict):
        yield report
    for each in report.values() if isinstance(report, dict) else report if isinstance(report, list) else ():
        yield from _parts(each)


def test_every_listed_model_has_an_architecture() -> None:
    assert all(need(memory.presumed_architecture(spec), PRESETS[0]).device > 0 for spec in REGISTRY.values())
    with pytest.raises(LoadError):
        memory.presumed_architecture(resolve("flux-shapes").__class__("gone", "/no/such/folder"))


@pytest.fixture(scope="module")
def resident() -> FluxComponents:
    return load(TINY, CpuAccelerator())


def test_modulation_on_the_host_leaves_pictures_as_they_are_and_is_counted(resident: FluxComponents) -> None:
    offloaded = load(TINY, CpuAccelerator(), offload="text+modulation")
    arch, freed = ARCHITECTURES[TINY.source], weight_bytes(resident.transformer) - weight_bytes(offloaded.transformer)
    assert freed == 4 * counts.modulation_parameters(arch.transformer)
    offloaded.transformer.to("meta").to_empty(device="cpu")  # wherever the module goes, what waits does not
    again = load(TINY, CpuAccelerator(), offload="text+modulation").transformer
    temb = torch.randn(3, 32)
    assert torch.equal(modulation_rows(again, temb), modulation_rows(resident.transformer, temb))
    held = again.transformer_blocks[0].norm1.linear.weight
    moved = offloaded.transformer.transformer_blocks[0].norm1.linear.weight
    assert torch.equal(moved.unpack(torch.float32), held.unpack(torch.float32))
    assert share(again).transformer_blocks[0].norm1.linear.weight is held


def test_offloaded_text_encoders_hold_nothing_between_prompts_and_encode_the_same(resident: FluxComponents) -> None:
    offloaded = load(TINY, CpuAccelerator(), offload="text")
    encoders = (offloaded.text_encoder, offloaded.text_encoder_2)
    assert all(parameter.is_meta for encoder in encoders for parameter in encoder.parameters())
    assert (offloaded.dtype, offloaded.device) == (resident.dtype, resident.device)
    assert weight_bytes(offloaded.transformer) == weight_bytes(resident.transformer)
    with torch.inference_mode():
        for prompt in ("a red circle", "two blue squares"):
            ours, theirs = (encode_prompt(each, prompt, 16, torch.clone) for each in (offloaded, resident))
            assert torch.equal(ours.tokens, theirs.tokens)
            assert torch.equal(ours.pooled, theirs.pooled)
    assert all(parameter.is_meta for encoder in encoders for parameter in encoder.parameters())


def test_one_layer_at_a_time_is_on_the_device() -> None:
    module = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    stream_from_host(module, torch.device("cpu"))
    present: list[list[bool]] = []
    for layer in module:
        inner = layer._old_forward  # type: ignore[union-attr]

        def note(x: Tensor, inner: Callable[[Tensor], Tensor] = inner) -> Tensor:  # type: ignore[assignment]
            present.append([not other.weight.is_meta for other in module])  # type: ignore[union-attr]
            return inner(x)

        layer._old_forward = note
    module(torch.ones(1, 4))
    assert present == [[True, False, False], [False, True, False], [False, False, True]]
