"""Which attention is taken: the fastest of those that are right; never one that is wrong, absent or breaks."""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from models.accelerator import CpuAccelerator
from pipelines.ops.attention import Attend, _varlen_kernel, grouped_attention
from pipelines.ops.attention_choice import BACKENDS, Backend, Place, choose_attention

CPU = Place("cpu", (0, 0), torch.float32)
LENGTHS = (9, 4, 4)


def one_by_one(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int]) -> Tensor:
    parts = zip(*(x.split(list(lengths)) for x in (query, key, value)), strict=True)
    return torch.cat([grouped_attention(q, k, v, [len(q)]) for q, k, v in parts])


def slow(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int]) -> Tensor:
    time.sleep(0.05)
    return one_by_one(query, key, value, lengths)


def choose(backends: dict[str, Attend], name: str = "auto", missing: str | None = None) -> tuple[Attend, list[str]]:
    notes: list[str] = []
    table = {key: Backend(attend, lambda place: missing) for key, attend in backends.items()}
    table["slow"] = Backend(slow, lambda place: None)
    ordered = {"slow": table.pop("slow")} | table
    return choose_attention(name, CPU, 2, 8, CpuAccelerator(), notes.append, ordered, LENGTHS), notes


def test_the_fastest_right_one_is_taken() -> None:
    attend, notes = choose({"quick": one_by_one})
    assert attend is one_by_one
    assert notes[0].startswith("attention quick: slow ")


def wrong(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int]) -> Tensor:
    return one_by_one(query, key, value, lengths) * 1.01


def swayed(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int]) -> Tensor:
    return one_by_one(query, key, value, lengths) * (1 if len(lengths) == 1 else 1 + 1e-7)


def not_numbers(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int]) -> Tensor:
    return one_by_one(query, key, value, lengths) * float("nan")


def broken(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int]) -> Tensor:
    raise RuntimeError("no kernel image is available\nand more")


@pytest.mark.parametrize(
    ("attend", "reason"),
    [
        (wrong, "it is off by"),
        (not_numbers, "it is off by nan"),
        (swayed, "a picture's bits change with its neighbours"),
        (broken, "RuntimeError: no kernel image is available"),
    ],
)
def test_what_is_wrong_is_passed_over_with_a_sentence(attend: Attend, reason: str) -> None:
    chosen, notes = choose({"quick": attend})
    assert chosen is slow
    assert notes[0].startswith(f"attention quick is not used: {reason}")
    assert "\n" not in notes[0]


def test_what_cannot_run_is_not_tried_and_refused_by_name() -> None:
    assert choose({"quick": broken}, missing="needs a GPU") == (slow, [])
    with pytest.raises(ValueError, match="quick cannot run here: needs a GPU"):
        choose({"quick": broken}, "quick", missing="needs a GPU")


def test_torchs_variable_length_kernel_takes_what_it_is_given() -> None:
    """Whatever torch is installed: unsplit where it can be told so."""
    kernel = _varlen_kernel()
    bound = inspect.signature(kernel).bind(*"qkv", "starts", "starts", 9, 9)
    names = ("query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k")
    assert tuple(bound.arguments)[: len(names)] == names
    splits = inspect.signature(varlen_attn).parameters.get("num_splits")
    assert splits is None or inspect.signature(kernel).parameters["num_splits"].default == 1


def test_a_cpu_has_one_attention_and_measures_nothing() -> None:
    notes: list[str] = []
    assert choose_attention("auto", CPU, 24, 128, CpuAccelerator(), notes.append) is grouped_attention
    assert notes == []


@pytest.mark.parametrize(
    ("place", "names"),
    [
        (CPU, {"grouped"}),
        (Place("cuda", (9, 0), torch.float32), {"grouped"}),
        (Place("cuda", (7, 5), torch.float16), {"grouped", "cudnn"}),
        (Place("cuda", (9, 0), torch.float16), {"grouped", "cudnn", "varlen"}),
    ],
)
def test_what_can_run_where(place: Place, names: set[str]) -> None:
    assert {name for name, backend in BACKENDS.items() if backend.missing(place) is None} == names
