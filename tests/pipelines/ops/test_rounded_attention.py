"""Attention over 8-bit numbers: how others' kernels are called, that wrong ones are passed over, and who gets it."""

from __future__ import annotations

import ast
import inspect
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.accelerator import CpuAccelerator
from models.components import FluxComponents
from models.float8 import share
from models.quantization import quantize
from models.tuning import AUTO, Tuning, parse_tuning
from pipelines.engine.engine import Engine
from pipelines.families.flux1.runner import FluxRunner
from pipelines.ops import attention
from pipelines.ops.attention import Attend, emulated_attention, fa3_float8_attention, grouped_attention, sage_attention
from pipelines.ops.attention_choice import ROUNDED, Backend, Place, choose_rounded
from tests.pipelines.driving import drain, make_params, pictures, submit
from tests.pipelines.ops import published_kernels
from tests.pipelines.ops.published_kernels import published

HOPPER = Place("cuda", (9, 0), torch.bfloat16)
LENGTHS = (40, 24, 24)


def sample(lengths: Sequence[int] = LENGTHS, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value as a step has them: views of one product."""
    generator = torch.Generator().manual_seed(1)
    query, key, value = torch.randn(sum(lengths), 3, 2, 64, generator=generator).to(dtype).unbind(1)
    return query, key, value


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both packages, as if they were installed."""
    fa3 = published(flash_attn_varlen_func=published_kernels.flash_attn_varlen_func)
    monkeypatch.setitem(sys.modules, "fa3_fwd_interface", fa3)
    monkeypatch.setitem(sys.modules, "sageattention", published(sageattn=published_kernels.sageattn))
    attention._fa3_kernel.cache_clear()
    yield
    attention._fa3_kernel.cache_clear()


ROUNDING: tuple[Attend, ...] = (fa3_float8_attention, sage_attention, emulated_attention)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("attend", ROUNDING)
def test_a_result_is_near_the_exact_one_and_the_same_bits_alone(attend: Attend) -> None:
    query, key, value = sample()
    exact = grouped_attention(*(x.float() for x in (query, key, value)), LENGTHS)
    together = attend(query, key, value, LENGTHS)
    assert (together.shape, together.dtype) == (exact.shape, torch.bfloat16)
    assert torch.equal(key, sample()[1]), "the caller's own keys were changed"
    error = float((together.float() - exact).norm() / exact.norm())
    assert 0.002 < error < 0.06
    assert torch.equal(together[:40], attend(query[:40], key[:40], value[:40], (40,)))


def test_a_picture_of_large_values_rescales_no_other() -> None:
    query, key, value = (torch.cat([x[:40], 1e4 * x[40:]]) for x in sample())
    alone = emulated_attention(query[:40], key[:40], value[:40], (40,))
    assert torch.equal(emulated_attention(query, key, value, LENGTHS)[:40], alone)


def test_nothing_stays_nothing() -> None:
    query, key, value = (torch.zeros_like(x) for x in sample(dtype=torch.float16))
    assert torch.equal(emulated_attention(query, key, value, LENGTHS), torch.zeros(88, 128, dtype=torch.float16))


def choose(backends: dict[str, Backend], exact: Attend = grouped_attention) -> tuple[Attend, list[str]]:
    notes: list[str] = []
    return choose_rounded(exact, HOPPER, 2, 64, CpuAccelerator(), notes.append, backends, LENGTHS), notes


def slow(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int]) -> Tensor:
    time.sleep(0.05)
    return grouped_attention(query, key, value, lengths)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", ROUNDED)
def test_a_kernel_is_taken_that_is_right_and_faster(name: str) -> None:
    chosen, notes = choose({name: ROUNDED[name]}, exact=slow)
    assert chosen is ROUNDED[name].attend
    assert notes[0].startswith(f"attention beside float8 weights {name}: {name} ")


@pytest.mark.usefixtures("kernels")
def test_one_that_is_slower_is_not() -> None:
    def slower(*args: object) -> Tensor:
        time.sleep(0.05)
        return fa3_float8_attention(*args)  # type: ignore[arg-type]

    chosen, notes = choose({"fa3": Backend(slower, lambda place: None)})
    assert chosen is grouped_attention
    assert notes[0].startswith("attention beside float8 weights exact: fa3 ")


def in_another_layout(q: Tensor, k: Tensor, v: Tensor, tensor_layout: str = "HND", is_causal: bool = False) -> Tensor:
    return published_kernels.sageattn(q, k, v, "HND")


def without_scales(q: Tensor, k: Tensor, v: Tensor, at: Tensor, *rest: object, **scales: object) -> Tensor:
    return grouped_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), at.diff().tolist()).unflatten(1, q.shape[1:])


def refusing(*args: object, **kwargs: object) -> Tensor:
    raise RuntimeError("This flash attention build does not support FP8.")


@pytest.mark.parametrize(
    ("name", "module", "reason"),
    [
        ("sage", published(sageattn=in_another_layout), "it is off by"),
        ("fa3", published(flash_attn_varlen_func=without_scales), "it is off by"),
        ("fa3", published(flash_attn_varlen_func=refusing), "RuntimeError: This flash attention build does not"),
    ],
)
@pytest.mark.usefixtures("kernels")
def test_one_that_is_wrong_is_passed_over_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, module: ModuleType, reason: str
) -> None:
    monkeypatch.setitem(sys.modules, {"sage": "sageattention", "fa3": "fa3_fwd_interface"}[name], module)
    chosen, notes = choose({name: ROUNDED[name]}, exact=slow)
    assert chosen is slow
    assert notes[0].startswith(f"attention {name} is not used: {reason}")


def test_where_none_is_installed_attention_stays_exact_and_says_so() -> None:
    chosen, notes = choose({"fa3": Backend(fa3_float8_attention, lambda place: "not installed: fa3-fwd")})
    assert chosen is grouped_attention
    assert notes == ["attention is not rounded: fa3 not installed: fa3-fwd"]


@pytest.mark.parametrize("place", [Place("cuda", (7, 5), torch.float16), Place("cuda", (9, 0), torch.float32)])
@pytest.mark.usefixtures("kernels")
def test_a_card_or_dtype_that_no_kernel_is_for_has_none(place: Place) -> None:
    assert all(backend.missing(place) for backend in ROUNDED.values())


@pytest.mark.parametrize(
    ("package", "file", "double"),
    [
        ("fa3_fwd_interface", "", published_kernels.flash_attn_varlen_func),
        ("sageattention", "core.py", published_kernels.sageattn),
    ],
)
def test_our_doubles_have_the_parameters_of_what_is_installed(
    package: str, file: str, double: Callable[..., object]
) -> None:
    """Read, not imported: they need a GPU even for that."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"not installed: {package}")
    tree = ast.parse((Path(spec.origin).with_name(file) if file else Path(spec.origin)).read_text())
    (found,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == double.__name__)
    ours = [name for name, each in inspect.signature(double).parameters.items() if each.kind is not each.VAR_KEYWORD]
    assert [argument.arg for argument in found.args.args][: len(ours)] == ours


def test_float8_weights_have_it_if_asked_for_and_exact_ones_never(components: FluxComponents) -> None:
    twin = share(components.transformer)
    quantize(twin, "fp8", CpuAccelerator())
    float8 = replace(components, transformer=twin)
    on = parse_tuning("round_attention=on")
    exact, exact_on = drawn(components, AUTO), drawn(components, on)
    rounded, rounded_on = drawn(float8, AUTO), drawn(float8, on)
    assert np.array_equal(exact, exact_on)
    assert not np.array_equal(rounded, rounded_on)
    assert np.abs(rounded_on.astype(int) - exact).mean() < 20


def drawn(components: FluxComponents, tuning: Tuning) -> NDArray[np.uint8]:
    runner = FluxRunner(components, CpuAccelerator(), tuning)
    engine = Engine(lambda name: runner, CpuAccelerator())
    submit(engine, "a", make_params())
    return pictures(drain(engine), "a")[0]
