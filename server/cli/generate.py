"""`fluxserve generate`: one prompt to picture files, with the server's engine but no server."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from models.errors import LoadError
from models.first_look import first_look
from models.memory import Offload
from models.registry import ModelSpec
from pipelines.protocol.frames import Frame, Loading, Note, Picture, Progress
from pipelines.protocol.params import GenerationParams
from server.cli.failures import ENVIRONMENT, USAGE, CommandError
from server.cli.loras import loras_of
from server.cli.options import Json, Tuning, check_tuning, pixels, spec_of

if TYPE_CHECKING:
    from pipelines.oneshot import Generated

STEPS = "num_inference_steps"
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def generate(
    prompt: Annotated[str, typer.Argument(help="What the picture shows.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="A .png, .jpg or .webp file.")] = Path("out.png"),
    model: Annotated[str, typer.Option(help="Name, folder, file or Hugging Face id.")] = "flux-shapes",
    transformer: Annotated[str | None, typer.Option(help="A single file in place of the model's transformer.")] = None,
    model_dir: Annotated[
        list[Path] | None, typer.Option(help="Folder of single files, such as ComfyUI's models; repeatable.")
    ] = None,
    size: Annotated[str, typer.Option(help="A preset such as landscape_4_3, or WIDTHxHEIGHT.")] = "landscape_4_3",
    steps: Annotated[int | None, typer.Option(help="Denoising steps.", show_default="the model's")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.", show_default="the model's")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed repeats the picture.", show_default="random")] = None,
    num_images: Annotated[int, typer.Option(help="Pictures; the k-th has seed + k.")] = 1,
    safety_checker: Annotated[bool, typer.Option(help="Black out unsafe pictures.")] = True,
    lora: Annotated[
        list[str] | None,
        typer.Option(help="A LoRA's .safetensors file, or FILE@SCALE; repeatable.", metavar="FILE[@SCALE]"),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    quantization: Annotated[str, typer.Option(help="none or fp8 (needs a GPU).")] = "none",
    acceleration: Annotated[
        str, typer.Option(help="none (exact), regular, high or max: see docs/acceleration.md.")
    ] = "none",
    offload: Annotated[
        Offload, typer.Option(help="text, text+modulation or text+blocks: what waits in host memory.")
    ] = "none",
    tuning: Annotated[str, Tuning] = "",
    as_json: Json = False,
) -> None:
    """Draw one prompt on this machine and write the picture, without a server."""
    from server.api.schemas.base import DEFAULT_THRESHOLD

    if output.suffix.lower() not in FORMATS:
        raise CommandError(f"--output {output}: the name must end in {', '.join(FORMATS)}", USAGE)
    _check_writable(output)
    check_tuning(tuning)
    spec = spec_of(model if transformer is None else f"{model}+{transformer}", model_dir or ())
    _look_at(spec)
    for note in _what_a_server_refuses(spec, steps, guidance):
        print(f"fluxserve: {note}", file=sys.stderr)
    width, height = pixels(size, "--size")
    with loras_of(lora or ()) as (adapters, folder):
        try:
            params = GenerationParams(
                model=spec.name,
                prompt=prompt,
                width=width,
                height=height,
                num_inference_steps=spec.default_steps if steps is None else steps,
                guidance_scale=spec.default_guidance if guidance is None else guidance,
                seed=secrets.randbelow(2**32) if seed is None else seed,
                num_images=num_images,
                max_sequence_length=spec.max_sequence_length,
                safety_threshold=DEFAULT_THRESHOLD if safety_checker else None,
                acceleration=acceleration,
                adapters=adapters,
            )
        except ValueError as exc:
            raise CommandError(str(exc), USAGE) from exc
        with _progress(quiet=as_json) as on_frame:
            result = _generate(spec, params, device, dtype, quantization, tuning, offload, folder, on_frame)
    files = [_write(picture, _file(output, picture.index, num_images)) for picture in result.pictures]
    print(_report(params, result, files) if as_json else _summary(params, result, files))


def _what_a_server_refuses(spec: ModelSpec, steps: int | None, guidance: float | None) -> Iterator[str]:
    """Where this command, which takes what the engine can do, goes beyond every endpoint of the model."""
    from server.api.endpoints import ENDPOINTS

    rows = [row for row in ENDPOINTS.values() if row.variants[0] == spec.variant]
    fields = [row.schema.model_json_schema()["properties"] for row in rows]
    bounds = [(one["minimum"], one["maximum"]) for each in fields if "minimum" in (one := each.get(STEPS, {}))]
    if steps is not None and bounds and not any(low <= steps <= high for low, high in bounds):
        low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
        yield f"a server draws {spec.name} in {low} to {high} steps, not in {steps}"
    if steps not in (None, spec.default_steps) and fields and not any(STEPS in each for each in fields):
        yield f"a server draws {spec.name} in {spec.default_steps} steps, not in {steps}"
    if guidance is not None and fields and not any("guidance_scale" in each for each in fields):
        yield f"a server takes no guidance for {spec.name}"


def _look_at(spec: ModelSpec) -> None:
    try:
        first_look(spec)
    except LoadError as exc:
        raise CommandError(str(exc), ENVIRONMENT) from exc


def _check_writable(output: Path) -> None:
    """Before minutes of drawing, not after. Raises: CommandError."""
    if not output.parent.is_dir():
        raise CommandError(f"cannot write {output}: there is no folder {output.parent}")
    if not os.access(output if output.exists() else output.parent, os.W_OK):
        raise CommandError(f"cannot write {output}: permission denied")


def _generate(
    spec: ModelSpec,
    params: GenerationParams,
    device: str,
    dtype: str,
    quantization: str,
    tuning: str,
    offload: Offload,
    adapters: Path | None,
    on_frame: Callable[[Frame], None],
) -> Generated:
    # These import torch: only this command pays for it.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads starve whoever else needs the cores
    from pipelines.oneshot import GenerationError
    from pipelines.oneshot import generate as run

    try:
        return run(spec, params, device, dtype, quantization, on_frame, offload, tuning, adapters)
    except GenerationError as exc:
        raise CommandError(str(exc)) from exc
    except (LoadError, ValueError) as exc:
        raise CommandError(str(exc), ENVIRONMENT) from exc


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[Frame], None]]:
    """A bar on stderr that follows the engine's frames."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description:>20}"), BarColumn(), TextColumn("{task.fields[note]}"))
    with Bars(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=quiet) as bars:
        task = bars.add_task("starting", total=1.0, note="")

        def follow(frame: Frame) -> None:
            if isinstance(frame, Loading):
                bars.update(task, description=f"loading {frame.model}", completed=frame.fraction, note=frame.stage)
            elif isinstance(frame, Progress):
                note = f"step {frame.step}/{frame.num_steps}"
                bars.update(task, description="drawing", total=frame.num_steps, completed=frame.step, note=note)
            elif isinstance(frame, Note):
                bars.console.print(frame.message)

        yield follow


def _file(output: Path, index: int, num_images: int) -> Path:
    """The k-th picture's file: the name as given for one, numbered from 1 for several."""
    return output if num_images == 1 else output.with_stem(f"{output.stem}-{index + 1}")


def _write(picture: Picture, file: Path) -> Path:
    from PIL import Image

    image = Image.frombytes("RGB", (picture.width, picture.height), picture.pixels)
    try:
        image.save(file, FORMATS[file.suffix.lower()], quality=95)
    except OSError as exc:
        raise CommandError(f"cannot write {file}: {exc.strerror or exc}") from exc
    return file


def _summary(params: GenerationParams, result: Generated, files: list[Path]) -> str:
    lines = []
    for picture, file in zip(result.pictures, files, strict=True):
        flagged = ", BLACKED OUT by the safety checker" if picture.has_nsfw_concept else ""
        lines.append(f"{file}: {picture.width} x {picture.height}, seed {picture.seed}{flagged}")
    unchecked = params.safety_threshold is not None and not result.has_safety_checker
    checked = "; this model has no safety checker" if unchecked else ""
    seconds = result.timings["inference"]
    return "\n".join([*lines, f"{params.num_inference_steps} steps in {seconds:.2f} s on {result.device}{checked}"])


def _report(params: GenerationParams, result: Generated, files: list[Path]) -> str:
    images = [
        {
            "file": str(file),
            "width": picture.width,
            "height": picture.height,
            "seed": picture.seed,
            "has_nsfw_concept": picture.has_nsfw_concept,
        }
        for picture, file in zip(result.pictures, files, strict=True)
    ]
    facts = {"model": params.model, "prompt": params.prompt, "device": result.device, "timings": result.timings}
    return json.dumps({"images": images} | facts)
