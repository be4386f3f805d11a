"""Single steps of the model: kernel by kernel, and every way to run them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu_report.parts import Figures, tried
from benchmarks.gpu_report.subject import Subject
from benchmarks.gpu_report.timing import both_ms, device_ms, profiled
from models.components import FluxComponents
from models.tuning import PLAIN, Tuning
from pipelines.families.flux1.runner import FluxRunner

CHANGES: dict[str, dict[str, Any]] = {
    "on": {},
    "split_k on": {"split_k": True},
    "replay off": {"replay": False},
    "kernels=torch": {"kernels": "torch"},
    "attention=grouped": {"attention": "grouped"},
    "attention=cudnn": {"attention": "cudnn"},
    "attention=varlen": {"attention": "varlen"},
    "attention=fa3": {"attention": "fa3"},
}
"""One switch at a time away from what is served."""


def step_of(subject: Subject, runner: FluxRunner, sides: Sequence[int]) -> Callable[[], None]:
    """One packed step over fresh rows; they never get past their first."""
    rows = [subject.admitted(runner, side, index) for index, side in enumerate(sides)]
    return lambda: runner.denoise(rows)


def measured(subject: Subject, runner: FluxRunner, name: str) -> Figures:
    """One step of the large picture. Args: name: of the file with torch's own table."""
    step, accelerator = step_of(subject, runner, (subject.options.size,)), subject.accelerator
    figures = {"step_ms": device_ms(step, accelerator, 6)}
    figures |= profiled(step, accelerator, subject.options.out / f"profile-{name}.txt")
    return figures | {"host_ms_to_launch_a_step": both_ms(step, accelerator)["host_ms"]}


def profile(subject: Subject, row: Figures) -> None:
    row |= measured(subject, subject.runner, "bf16")


def switches(subject: Subject, row: Figures) -> None:
    """`ms_a_step` by way and pack."""
    table = row["ms_a_step"] = {}
    for name, change in CHANGES.items():
        table[name] = way(subject, subject.exact, replace(subject.served, **change))
    table["float8"] = way(subject, subject.float8, subject.served)
    if "plain" in subject.__dict__:
        table["off"] = way(subject, subject.plain, PLAIN)


def compiled(subject: Subject, row: Figures) -> None:
    """The same through torch.compile, with the seconds that it took."""
    tuning = replace(subject.served, kernels="compiled")
    table = row["ms_a_step"] = {}
    table["kernels=compiled"] = way(subject, subject.exact, tuning)
    table["float8, kernels=compiled"] = way(subject, subject.float8, tuning)
    row["decode"] = tried(lambda: _compiled_decode(subject))


def way(subject: Subject, components: FluxComponents, tuning: Tuning) -> Any:
    """Milliseconds a step of every pack run in this way; `first_s` where the first took longer than a second."""
    try:
        return tried(lambda: _way(subject, components, tuning))
    finally:
        tried(subject.as_served)


def _way(subject: Subject, components: FluxComponents, tuning: Tuning) -> Figures:
    runner = FluxRunner(components, subject.accelerator, tuning)
    line: Figures = {}
    for pack, sides in subject.packs().items():
        step = step_of(subject, runner, sides)
        began = time.perf_counter()
        step()
        subject.accelerator.mark().wait()
        first_s = time.perf_counter() - began
        line[pack] = device_ms(step, subject.accelerator, 3)
        if first_s > 1:
            line[f"{pack}: first_s"] = round(first_s, 1)
    return line


@torch.inference_mode()
def _compiled_decode(subject: Subject) -> Figures:
    components, side = subject.exact, subject.options.size // subject.exact.vae_scale_factor
    shape = (1, components.latent_channels, side, side)
    latents = torch.randn(shape, device=components.device, dtype=components.vae.dtype)
    decode: Callable[..., object] = torch.compile(components.vae.decode, dynamic=True)
    began = time.perf_counter()
    decode(latents, return_dict=False)
    subject.accelerator.mark().wait()
    first_s = round(time.perf_counter() - began, 1)
    return {"first_s": first_s, "ms": device_ms(lambda: decode(latents, return_dict=False), subject.accelerator)}
