"""`fluxserve bench`: seconds per image and images per second, of the engine or of any server that speaks fal's API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from models.registry import ModelSpec
from pipelines.protocol.params import ACCELERATIONS
from server.bench.scenarios import SCENARIOS, Plan, parse_numbers
from server.bench.target import BenchError, Target
from server.cli.failures import ENVIRONMENT, USAGE, CommandError
from server.cli.options import Json, Tuning, check_tuning, pixels, spec_of

if TYPE_CHECKING:
    from server.bench.session import Subject

app = typer.Typer(no_args_is_help=True, help="Measure the engine, or any server that speaks fal's API.")

MODEL = "flux-shapes"
ENDPOINT = "fal-ai/flux/dev"
MIXED_SIZES, MIXED_STEPS = "512x512,1024x768,1024x1024", "4,12,28"


class TargetName(StrEnum):
    """What `--target` takes."""

    ENGINE = "engine"
    API = "api"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the requests go, as the flags said."""

    target: TargetName
    url: str | None
    api_key: str | None
    endpoint: str | None
    model: str | None
    device: str
    dtype: str
    quantization: str
    tuning: str


def measure(
    context: typer.Context,
    target: Annotated[TargetName, typer.Option(help="The engine alone, or through the API.")] = TargetName.ENGINE,
    url: Annotated[
        str | None, typer.Option(help="A server that runs already; else --target api starts one.", show_default=False)
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="Sent to --url as fal's clients do.", envvar="FAL_KEY", show_default=False)
    ] = None,
    endpoint: Annotated[str | None, typer.Option(help="At the API.", show_default="by the model")] = None,
    model: Annotated[
        str | None, typer.Option(help="Name, folder, Hugging Face id, or random:FLUX.1-dev.", show_default=MODEL)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    quantization: Annotated[str, typer.Option(help="none or fp8 (needs a GPU).")] = "none",
    tuning: Annotated[str, Tuning] = "",
    acceleration: Annotated[
        str, typer.Option(help="none (exact), regular, high or max, asked of every request: see docs/acceleration.md.")
    ] = "none",
    sizes: Annotated[
        str | None, typer.Option(help="Presets or WIDTHxHEIGHT, with commas between.", show_default="1024x1024")
    ] = None,
    steps: Annotated[
        str | None, typer.Option(help="Denoising steps, with commas between.", show_default="the model's")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Requests a row.", show_default="5; 20 under load")] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Of every shape before a row, not counted.")] = 2,
    clients: Annotated[int, typer.Option(min=1, help="closed and mixed: how many ask at once.")] = 4,
    rate: Annotated[
        float | None, typer.Option(help="poisson and mixed: requests a second.", show_default="by --load")
    ] = None,
    load: Annotated[float, typer.Option(help="poisson: share of the rate of one at a time in the warm-up.")] = 0.8,
    seed: Annotated[int, typer.Option(min=0, help="Of the prompts, the order and the arrivals.")] = 1,
    peak_tflops: Annotated[
        float | None, typer.Option(help="What the device does at best.", show_default="by its name")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for JSON, Markdown and plots.")] = Path(
        "bench-results"
    ),
    as_json: Json = False,
) -> None:
    """Run one scenario; the name of the command is its name."""
    scenario = str(context.info_name)
    place = Place(target, url, api_key, endpoint, model, device, dtype, quantization, tuning)
    check_tuning(tuning)
    if acceleration not in ACCELERATIONS:
        raise CommandError(f"--acceleration {acceleration}: give one of {', '.join(ACCELERATIONS)}", USAGE)
    if url is not None and target is TargetName.ENGINE:
        raise CommandError("--url is for --target api", USAGE)
    for flag, value in (("--rate", rate), ("--load", load), ("--peak-tflops", peak_tflops)):
        if value is not None and value <= 0:
            raise CommandError(f"{flag} must be more than 0, not {value:g}", USAGE)
    spec = _spec(place)
    is_mixed = scenario == "mixed"
    plan = Plan(
        scenario,
        tuple(pixels(word, "--sizes") for word in (sizes or (MIXED_SIZES if is_mixed else "1024x1024")).split(",")),
        tuple(_numbers(steps or (MIXED_STEPS if is_mixed else str(spec.default_steps if spec else 28)))),
        count or (5 if scenario == "single" else 20),
        clients,
        rate,
        load,
        seed,
        acceleration,
    )
    with _watched(quiet=as_json) as watcher:
        report = _report(plan, place, spec, warmup, peak_tflops, watcher)
        files = _write(report, output, watcher)
    _print(report, files, as_json)


for name, summary in SCENARIOS.items():
    app.command(name, help=summary)(measure)


@app.command("compare")
def compare(
    first: Annotated[Path, typer.Argument(help="A report in JSON.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="Another of the same scenario and model.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Print how the second report's figures relate to the first's."""
    from server.bench import compare as comparing

    try:
        reports = comparing.read(first), comparing.read(second)
        print(json.dumps(comparing.ratios(*reports)) if as_json else comparing.markdown(*reports))
    except BenchError as exc:
        raise CommandError(str(exc), USAGE) from exc


def _spec(place: Place) -> ModelSpec | None:
    """What is measured, or None for an API elsewhere that was not named."""
    return spec_of(place.model or MODEL) if place.model or place.url is None else None


def _numbers(text: str) -> list[int]:
    try:
        return list(parse_numbers(text))
    except ValueError as exc:
        raise CommandError(f"--steps {text}: give whole numbers from 1 with commas between", USAGE) from exc


def _report(
    plan: Plan, place: Place, spec: ModelSpec | None, warmup: int, peak_tflops: float | None, watcher: _Bars
) -> dict[str, Any]:
    # These import HTTP clients and the worker's supervisor: only this command pays for them.
    from server.bench import session

    async def whole() -> dict[str, Any]:
        subject, target = _subject(place, spec)
        return await session.run(plan, subject, target, warmup, peak_tflops, watcher)

    try:
        return asyncio.run(whole())
    except BenchError as exc:
        raise CommandError(str(exc), ENVIRONMENT) from exc


def _subject(place: Place, spec: ModelSpec | None) -> tuple[Subject, Target]:
    """What the report calls it, and the thing itself. Made on the event loop that will use it."""
    from server.bench.api_target import ApiTarget
    from server.bench.engine_target import EngineTarget
    from server.bench.own_server import OwnServer
    from server.bench.session import Subject

    model = place.model or MODEL
    if place.url is not None:
        endpoint = _endpoint(place, spec)
        label = spec.name if spec else f"{endpoint} at {place.url}"
        return Subject("api", label, spec), ApiTarget(place.url, endpoint, place.api_key)
    assert spec is not None, "only an API elsewhere goes unnamed"
    subject = Subject(place.target.value, spec.name, spec, place.quantization, place.tuning)
    if place.target is TargetName.ENGINE:
        return subject, EngineTarget(spec, model, place.device, place.dtype, place.quantization, place.tuning)
    given = {"--model": model, "--device": place.device, "--dtype": place.dtype}
    given |= {"--quantization": place.quantization, "--tuning": place.tuning}
    flags = tuple(word for flag in given.items() for word in flag)
    return subject, OwnServer(_endpoint(place, spec), flags)


def _endpoint(place: Place, spec: ModelSpec | None) -> str:
    """Which is asked at the API. Raises: CommandError for a model that draws nothing from text alone."""
    from server.api.endpoints import drawing_with

    if place.endpoint is not None or spec is None:
        return place.endpoint or ENDPOINT
    if (row := drawing_with(spec.variant)) is None:
        raise CommandError(f"{spec.name} draws nothing from text alone, and a benchmark sends no pictures", USAGE)
    return row.id


class _Bars:
    """The benchmark's progress as bars on stderr."""

    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._loading = bars.add_task("starting", total=1.0, note="")
        self._cells: dict[str, Any] = {}

    def loading(self, stage: str, fraction: float) -> None:
        self._bars.update(self._loading, description="loading", completed=fraction, note=stage)

    def done(self, cell: str, requests: int, of: int) -> None:
        if cell not in self._cells:
            self._bars.update(self._loading, completed=1.0, note="")
            self._cells[cell] = self._bars.add_task(cell, total=of, note="")
        self._bars.update(self._cells[cell], total=of, completed=requests, note=f"{requests}/{of}")

    def note(self, sentence: str) -> None:
        typer.echo(sentence, err=True)


@contextmanager
def _watched(quiet: bool) -> Iterator[_Bars]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:>24}"), BarColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=quiet) as bars:
        yield _Bars(bars)


def _write(report: dict[str, Any], folder: Path, watcher: _Bars) -> list[Path]:
    from server.bench import plots
    from server.bench import report as reporting

    try:
        files = reporting.write(report, folder)
        plots.plot(report, files[0].with_suffix(".png"))
        return [*files, files[0].with_suffix(".png")]
    except plots.NoPlotsError as exc:
        watcher.note(str(exc))
        return files
    except OSError as exc:
        raise CommandError(f"cannot write to --output {folder}: {exc.strerror or exc}") from exc


def _print(report: dict[str, Any], files: list[Path], as_json: bool) -> None:
    from server.bench.report import markdown

    print(json.dumps(report) if as_json else markdown(report))
    if not as_json:
        print("\n".join(str(file) for file in files))
