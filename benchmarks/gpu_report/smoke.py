"""The embedded model, really trained, drawn by the engine on the device and on the CPU: is it the same picture?"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.gpu_report.parts import Figures
from benchmarks.gpu_report.subject import Subject
from models.accelerator import Accelerator, open_accelerator
from models.loading import load
from models.registry import REGISTRY
from models.tuning import AUTO
from pipelines.engine.engine import Engine
from pipelines.families.flux1.runner import FluxRunner
from pipelines.protocol.frames import Failed, Picture, Submit
from pipelines.protocol.params import GenerationParams

_SPEC = REGISTRY["flux-shapes"]


def smoke(subject: Subject, row: Figures) -> None:
    notes: list[str] = []
    side = 512 if subject.on_gpu else subject.options.size
    pictures = {}
    for name in dict.fromkeys((subject.accelerator.kind, "cpu")):
        accelerator = subject.accelerator if name == subject.accelerator.kind else open_accelerator(name)
        runner = FluxRunner(load(_SPEC, accelerator, tuning=AUTO), accelerator, AUTO, notes.append)
        began = time.monotonic()
        picture = pictures[name] = drawn(runner, accelerator, side)
        row[f"{name}_first_s"] = round(time.monotonic() - began, 2)
        row[f"{name}_repeats_bitwise"] = bool(np.array_equal(picture, drawn(runner, accelerator, side)))
        Image.fromarray(picture).save(subject.options.out / f"smoke-{name}.png")
    row["notes"] = notes
    one, two = pictures[subject.accelerator.kind].astype(int), pictures["cpu"].astype(int)
    row["mean_difference_to_cpu"] = round(float(np.abs(one - two).mean()), 3)
    row["share_of_pixels_off_by_more_than_16"] = round(float((np.abs(one - two).max(-1) > 16).mean()), 4)


def drawn(runner: FluxRunner, accelerator: Accelerator, side: int, steps: int = 12) -> NDArray[Any]:
    """One picture by the engine, (H, W, 3) uint8. Raises: RuntimeError."""
    params = GenerationParams(
        _SPEC.name, "a red circle on a blue background", side, side, steps, _SPEC.default_guidance, seed=0,
        max_sequence_length=_SPEC.max_sequence_length,
    )  # fmt: skip
    engine = Engine(lambda name: runner, accelerator)
    engine.add_request(Submit("smoke", 0, params.to_dict()))
    pictures = []
    while engine.has_work:
        for frame in engine.step():
            if isinstance(frame, Failed):
                raise RuntimeError(frame.message)
            if isinstance(frame, Picture):
                pictures.append(np.frombuffer(frame.pixels, np.uint8).reshape(frame.height, frame.width, 3))
    return pictures[0]
