"""The doctor's look at PyTorch, devices and models: whether they can be loaded, and whether they fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models import host_memory
from models.arguments import UnknownModelError, resolve, resolve_all
from models.cards import BUS, best_fit, first_model
from models.counts import counts_of
from models.errors import LoadError
from models.fit import SIZES, helping_bytes, need_together, stored_bits
from models.helpers import helper_bytes
from models.memory import FP8_CAPABILITY, PRESETS, Need, Preset, presumed_architecture, streamed_bytes
from models.offers import is_here
from models.registry import REGISTRY, Family, ModelSpec
from models.tuning import parse_tuning
from server.cli.finding import Finding
from server.settings import Settings

_ROOT = Path(__file__).parents[2]
CHILD_S = 180
_DTYPE_BYTES = {"float32": 4, "float64": 8}
_PACKED_FILES: tuple[Family, ...] = ("flux", "flux2")
"""Families whose transformer is read from GGUF and float8 files, too, and whose flags for them are counted."""


def devices_and_models(settings: Settings) -> list[Finding]:
    """Each model by itself, then all that can be served together on the device with the least memory."""
    specs, findings = _specs(settings.model_arguments, settings.model_folders)
    here = [argument for argument, spec in specs.items() if is_here(spec)]
    facts, errors, broken = _examine(here, settings.model_dirs)
    if broken is not None:
        return [broken, *findings]
    found = [_versions(facts), *findings, *(_model(spec, errors.get(argument)) for argument, spec in specs.items())]
    if settings.cluster is not None:
        return found  # on which they run, this machine does not know
    gpus = [] if settings.device.startswith("cpu") else facts["gpus"]
    found[1:1] = [_device(settings.device, facts), first(gpus)]
    sound = [spec for argument, spec in specs.items() if not errors.get(argument) and not spec.is_fake]
    return found + (fits(settings, sound, gpus) if any(spec.draws for spec in sound) else [])


def _specs(arguments: Sequence[str], folders: Sequence[Path]) -> tuple[dict[str, ModelSpec], list[Finding]]:
    """What the arguments mean, and what is wrong with those that mean nothing."""
    specs: dict[str, ModelSpec] = {}
    findings = []
    for argument in arguments:
        try:
            specs[argument] = resolve(argument, folders)
        except UnknownModelError as exc:
            findings.append(Finding("model", "broken", str(exc)))
    try:
        resolve_all(specs, folders)
    except UnknownModelError as exc:
        findings.append(Finding("model", "broken", str(exc)))
    return specs, findings


def _examine(arguments: Sequence[str], folders: Sequence[str]) -> tuple[dict[str, Any], dict[str, str], Finding | None]:
    """(facts, what is wrong with models by argument, what is wrong with the child). Nothing is fetched."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONPATH": str(_ROOT)}
    command = [
        sys.executable,
        "-m",
        "models.examine",
        *(f"--model-dir={folder}" for folder in folders),
        "--",
        *arguments,
    ]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_S, env=environment)
    except subprocess.TimeoutExpired:
        what = f"importing it and looking at the models takes more than {CHILD_S} s"
        return {}, {}, Finding("torch", "broken", what, "look at the driver with nvidia-smi")
    lines = [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]
    if not lines:
        reason = (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
        return {}, {}, Finding("torch", "broken", reason, "install the locked dependencies again: make clean dev")
    told = {line["model"]: line["error"] for line in lines[1:]}
    unfinished = {argument: "looking at its files ended the process" for argument in arguments if argument not in told}
    return lines[0], {name: error for name, error in (told | unfinished).items() if error}, None


def _versions(facts: dict[str, Any]) -> Finding:
    versions = f"{facts['torch']}, diffusers {facts['diffusers']}, transformers {facts['transformers']}"
    return Finding("torch", "ok", versions)


def _device(wanted: str, facts: dict[str, Any]) -> Finding:
    gpus: list[dict[str, Any]] = facts["gpus"]
    if wanted.startswith("cuda") and not gpus:
        return Finding("device", "broken", f"{wanted} was asked for and PyTorch sees no GPU", "use --device auto")
    if gpus and wanted != "cpu":
        described = ", ".join(f"{gpu['name']} ({gpu['memory'] / 1e9:.0f} GB)" for gpu in gpus)
        return Finding("device", "ok", described)
    return Finding("device", "ok", f"CPU with {facts['threads']} threads: enough for flux-shapes, not for FLUX.1")


def first(gpus: Sequence[dict[str, Any]]) -> Finding:
    """What to begin with on this machine. Args: gpus: as for `fits`."""
    first_of = {spec.family: spec.name for spec in reversed(REGISTRY.values()) if spec.is_embedded}
    embedded = f"the embedded models, served without --model: {', '.join(reversed(first_of.values()))}"
    if not gpus:
        return Finding("first model", "ok", f"without a GPU {embedded}")
    gpu = _smallest(gpus)
    chosen = first_model(int(gpu["memory"]) / 2**30, _capability(gpu), host_memory.available())
    if chosen is None:
        return Finding("first model", "ok", f"for {gpu['name']} {embedded}")
    name, fit = chosen
    flags, tiled = f" {fit.flags}" if fit.flags else "", ", decoded in tiles" if fit.tiled else ""
    licence = f"{REGISTRY[name].licence}{', to be accepted' if REGISTRY[name].gated else ''}"
    detail = f"for {gpu['name']}: --model {name}{flags} ({fit.device / 1e9:.1f} GB{tiled}; {licence})"
    return Finding("first model", "ok", detail)


def _smallest(gpus: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return min(gpus, key=lambda gpu: int(gpu["memory"]))


def _capability(gpu: dict[str, Any]) -> tuple[int, ...]:
    return tuple(map(int, str(gpu["capability"]).split(".")))


def _model(spec: ModelSpec, error: str | None) -> Finding:
    if error is not None:
        return Finding("model", "broken", f"{spec.name}: {error}")
    if is_here(spec) is False and Path(spec.source).is_absolute():
        return Finding("model", "broken", f"{spec.name}: {spec.source} is not there", "restore it")
    if is_here(spec) is False:
        gated = "; it is gated: accept its licence and set HF_TOKEN" if spec.gated else ""
        return Finding("model", "warning", f"{spec.name} is not on this machine", f"the first start fetches it{gated}")
    return Finding("model", "ok", f"{spec.name} ({spec.licence})")


def fits(settings: Settings, specs: Sequence[ModelSpec], gpus: Sequence[dict[str, Any]]) -> list[Finding]:
    """All models of a worker together, as it is set up now, and what would make them fit.

    Args: specs: at least one that draws. gpus: of `models.accelerator.gpu_facts`; the one with the least memory counts.
        With none, the host's memory.
    """
    try:
        return [_fit_gpu(settings, specs, _smallest(gpus))] if gpus else _fit_host(settings, specs)
    except (LoadError, KeyError) as exc:
        return [Finding("fit", "warning", f"what the models need cannot be counted: {exc}")]


def _fit_gpu(settings: Settings, specs: Sequence[ModelSpec], gpu: dict[str, Any]) -> Finding:
    memory, capability = int(gpu["memory"]), _capability(gpu)
    if settings.quantization == "fp8" and capability < FP8_CAPABILITY:
        detail = f"--quantization fp8 needs compute capability 8.9 or later, {gpu['name']} has {gpu['capability']}"
        return Finding("fit", "broken", detail, "use --quantization none")
    now = Preset(settings.quantization, settings.offload, parse_tuning(settings.tuning).resolved("cuda").records)
    needs, free = _needs(settings, specs, now), host_memory.available()
    described = (
        f"{_names(specs)}: {needs[0].device / 1e9:.1f} of {memory / 1e9:.1f} GB "
        f"on {gpu['name']} for pictures of {_size(0)}, {needs[1].device / 1e9:.1f} GB for {_size(1)}"
        f"{_waiting(needs[0], free)}"
    )
    if needs[1].device <= memory and needs[0].host <= free:
        return Finding("fit", "ok", described)
    found = _recommended(settings, specs, memory, capability, free)
    what_fails = ""
    if needs[0].device <= memory < needs[1].device:
        comes = "are decoded in tiles" if needs[1].in_tiles <= memory else "may fail"
        what_fails = f"pictures of {_size(1)} {comes}; "
    if found is None:
        return Finding("fit", "warning", described, f"{what_fails}no setting makes it fit on this machine")
    better, is_tiled = found
    if better == now and not is_tiled:
        return Finding("fit", "warning", described, f"{what_fails}no setting holds them whole")
    flags, tiles = better.flags or "no flags", ", decoded in tiles" if is_tiled else ""
    smaller = [_device_bytes(need, is_tiled) / 1e9 for need in _needs(settings, specs, better)]
    price = _price_of_streaming(specs, better) + _faster(specs, memory, free) if better.is_streamed else ""
    advice = f"{what_fails}{flags}{tiles} ({smaller[0]:.1f} to {smaller[1]:.1f} GB{price})"
    return Finding("fit", "warning", described, advice)


def _names(specs: Sequence[ModelSpec]) -> str:
    """Those that are counted, and those whose size nothing here tells."""
    unknown = [spec.name for spec in specs if not spec.draws and helper_bytes(spec) is None]
    counted = ", ".join(spec.name for spec in specs if spec.name not in unknown)
    return f"{counted} (without {', '.join(unknown)}, not on this machine)" if unknown else counted


def _waiting(needed: Need, free: int) -> str:
    """What of a checkpoint is left in the machine's memory, in words."""
    return f"; {needed.host / 1e9:.1f} GB wait on the host, {free / 1e9:.1f} GB are free" if needed.host else ""


def _device_bytes(needed: Need, is_tiled: bool) -> int:
    return needed.in_tiles if is_tiled else needed.device


def _price_of_streaming(specs: Sequence[ModelSpec], preset: Preset) -> str:
    """Seconds a step by arithmetic."""
    counts = (counts_of(presumed_architecture(spec)) for spec in specs if spec.draws)
    moved = max(streamed_bytes(each, preset.block_itemsize) for each in counts)
    return f", each step passes {moved / 1e9:.1f} GB, {moved / BUS['PCIe 4.0']:.2f} s over PCIe 4.0"


def _faster(specs: Sequence[ModelSpec], memory: int, free: int) -> str:
    """In which other form the model would fit without passing its blocks.

    Nothing for several models, or for one whose transformer is packed already or is read in no other form.
    """
    drawing = [spec for spec in specs if spec.draws]
    spec = drawing[0]
    arch = presumed_architecture(spec)
    if len(drawing) > 1 or spec.family not in _PACKED_FILES or stored_bits(spec, counts_of(arch).transformer) != 16:
        return ""
    helping = helping_bytes(specs)
    fit = best_fit(memory - helping, arch)
    if fit is None or fit.per_step or fit.host > free:
        return ""
    form = "" if fit.file == "bfloat16" else f"its transformer in {fit.file} with "
    tiles = ", decoded in tiles" if fit.tiled else ""
    return f"; faster: {form}{fit.flags}{tiles} ({(fit.device + helping) / 1e9:.1f} GB), see docs/models.md"


def _needs(settings: Settings, specs: Sequence[ModelSpec], preset: Preset) -> list[Need]:
    """For each of SIZES."""
    held = None if settings.memory_gb is None else int(settings.memory_gb * 1e9)
    return [need_together(specs, preset, *size, held) for size in SIZES]


def _recommended(
    settings: Settings, specs: Sequence[ModelSpec], memory: int, capability: tuple[int, ...], free: int
) -> tuple[Preset, bool] | None:
    """The first preset that fits for the largest pictures, else for the usual ones, and whether those are decoded in
    tiles. Blocks pass only if nothing else fits, pictures come in tiles only if that does not help.

    Args: memory: of the device. free: of the machine.
    """
    streams = all(counts_of(presumed_architecture(spec)).blocks for spec in specs if spec.draws)
    possible = [
        preset for preset in PRESETS
        if (preset.quantization != "fp8" or capability >= FP8_CAPABILITY) and (streams or not preset.is_streamed)
    ]  # fmt: skip
    needs = {preset: _needs(settings, specs, preset) for preset in possible}
    tries = [
        (preset, size, is_tiled)
        for is_tiled, sizes in ((False, (1, 0)), (True, (0,))) for is_streamed in (False, True) for size in sizes
        for preset in possible if preset.is_streamed is is_streamed and needs[preset][size].host <= free
    ]  # fmt: skip
    fitting = (
        (preset, is_tiled) for preset, size, is_tiled in tries if _device_bytes(needs[preset][size], is_tiled) <= memory
    )
    return next(fitting, None)


def _fit_host(settings: Settings, specs: Sequence[ModelSpec]) -> list[Finding]:
    """On a CPU: weights in the dtype that is asked for, against what is free."""
    preset = Preset("none", "none")
    held = None if settings.memory_gb is None else int(settings.memory_gb * 1e9)
    widening = _DTYPE_BYTES.get("float32" if settings.dtype == "auto" else settings.dtype, 2) / 2
    needed, free = need_together(specs, preset, *SIZES[0], held).weights * widening, host_memory.available()
    detail = f"{_names(specs)}: {needed / 1e9:.1f} GB of weights, {free / 1e9:.1f} GB are free"
    if needed <= free:
        return [Finding("fit", "ok", detail)]
    return [Finding("fit", "broken", detail, "use a smaller --dtype, a GPU, or fewer models")]


def _size(index: int) -> str:
    width, height = SIZES[index]
    return f"{width} x {height}"
