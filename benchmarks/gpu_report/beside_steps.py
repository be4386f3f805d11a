"""What a picture takes beside its steps: text, modulation, noise, decoding, the way to the host, the engine's waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_report.parts import Figures, tried
from benchmarks.gpu_report.subject import Subject
from benchmarks.gpu_report.timing import both_ms, device_ms, profiled
from pipelines.engine.engine import Engine
from pipelines.engine.request import Request
from pipelines.families.flux1.modulation import ModulationTable
from pipelines.families.flux1.sampling import flow_match_sigmas, initial_noise, position_ids
from pipelines.pictures.decoding import to_pixels
from pipelines.protocol.frames import Finished, Submit

_STEPS = 8
_POLL_S = 0.001
"""As long as `benchmarks.engine` sleeps where nothing calls back."""


def picture(subject: Subject, row: Figures) -> None:
    """`admission` and `decode` piece by piece; the kernels of both; `engine_timings`, the engine's own account."""
    with torch.inference_mode():
        row["admission"] = {name: both_ms(work, subject.accelerator) for name, work in _admission(subject).items()}
        row["admit_kernels"] = tried(lambda: _kernels(subject, lambda: _admit(subject), "admit"))
        row["decode"] = {name: both_ms(work, subject.accelerator) for name, work in _decoding(subject).items()}
        decode = _decoding(subject)["vae.decode"]
        row["vae_decode_device_ms"] = device_ms(decode, subject.accelerator)
        row["decode_kernels"] = tried(lambda: _kernels(subject, decode, "decode"))
    row["engine_timings"] = [_timings(subject) for _ in range(3)]


def _kernels(subject: Subject, work: Callable[[], object], name: str) -> dict[str, Any]:
    return profiled(work, subject.accelerator, subject.options.out / f"profile-{name}.txt")


def _admit(subject: Subject) -> object:
    params = subject.params(subject.options.size, subject.options.steps)
    return subject.runner.admit(Request("report", 0, params, params.model, 0, 0.0)).result()


def _admission(subject: Subject) -> dict[str, Callable[[], object]]:
    """The pieces of an admission, in its order, and all of it."""
    parts, accelerator, steps = subject.exact, subject.accelerator, subject.options.steps
    side, length = subject.options.size // parts.size_multiple, parts.spec.max_sequence_length
    clip_length = parts.tokenizer.model_max_length

    def ids(tokenizer: Any, tokens: int) -> Tensor:
        prompt = subject.params(64, 1).prompt
        options = {"padding": "max_length", "max_length": tokens, "truncation": True, "return_tensors": "pt"}
        found: Tensor = tokenizer([prompt], **options).input_ids
        return found

    clip, t5 = (ids(t, n).to(parts.device) for t, n in ((parts.tokenizer, clip_length), (parts.tokenizer_2, length)))
    pooled = parts.text_encoder(clip, output_hidden_states=False).pooler_output.to(parts.dtype)
    tokens = parts.text_encoder_2(t5, output_hidden_states=False)[0][0].to(parts.dtype)
    sigmas = flow_match_sigmas(parts.sigma_config, steps, side * side)
    cells = subject.options.size // parts.vae_scale_factor

    def noise() -> Tensor:
        return initial_noise(torch.Generator().manual_seed(1), parts.latent_channels, cells, cells, parts.dtype)

    drawn = noise()
    return {
        "words to ids, both": lambda: (ids(parts.tokenizer, clip_length), ids(parts.tokenizer_2, length)),
        "CLIP": lambda: parts.text_encoder(clip, output_hidden_states=False),
        "T5": lambda: parts.text_encoder_2(t5, output_hidden_states=False),
        "context embedder": lambda: parts.transformer.context_embedder(tokens),
        "noise levels": lambda: flow_match_sigmas(parts.sigma_config, steps, side * side),
        "modulation table": lambda: ModulationTable(
            parts.transformer,
            parts.sigma_config,
            sigmas[:-1],
            3.5,
            pooled,
            32,
            accelerator.modulates_row_by_row,
            accelerator.to_device,
        ),
        "positions and rotations": lambda: parts.transformer.pos_embed(
            position_ids(length, side, side, parts.dtype).to(parts.device)
        ),
        "noise, drawn": noise,
        "noise, to the device": lambda: accelerator.to_device(drawn),
        "all of it": lambda: _admit(subject),
    }


def _decoding(subject: Subject) -> dict[str, Callable[[], object]]:
    """The pieces of a decode, and all of it."""
    parts, accelerator = subject.exact, subject.accelerator
    side = subject.options.size // parts.vae_scale_factor
    latents = torch.randn((1, parts.latent_channels, side, side), device=parts.device, dtype=parts.vae.dtype)
    row = subject.admitted(subject.runner, subject.options.size)
    drawn = parts.vae.decode(latents, return_dict=False)[0][0]
    pixels = to_pixels(drawn).contiguous()
    return {
        "vae.decode": lambda: parts.vae.decode(latents, return_dict=False),
        "to pixels": lambda: to_pixels(drawn),
        "to the host": lambda: accelerator.to_host(pixels),
        "all of it": lambda: subject.runner.decode(row).result(),
    }


def _timings(subject: Subject) -> dict[str, float]:
    """One picture of few steps: seconds by the engine's own account, and those it was polled in vain."""
    engine = Engine(lambda name: subject.runner, subject.accelerator)
    engine.add_request(Submit("report", 0, subject.params(subject.options.size, _STEPS).to_dict()))
    began, idle_s, longest_s = time.perf_counter(), 0.0, 0.0
    timings: dict[str, float] = {}
    while engine.has_work:
        at, steps = time.perf_counter(), engine.steps
        frames = engine.step(wait=False)
        longest_s = max(longest_s, time.perf_counter() - at)
        if not frames and engine.steps == steps:
            time.sleep(_POLL_S)
            idle_s += time.perf_counter() - at
        timings |= next((frame.timings for frame in frames if isinstance(frame, Finished)), {})
    whole_s = time.perf_counter() - began
    account = {"whole": whole_s, "polled in vain": idle_s, "longest call": longest_s} | timings
    return {"steps": _STEPS} | {name: round(seconds, 4) for name, seconds in account.items()}
