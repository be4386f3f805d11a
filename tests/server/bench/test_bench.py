"""`fluxserve bench`: what is asked when, what is counted, and what is refused; never how fast anything is."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from models.architectures import ARCHITECTURES
from models.flops import request_flops
from models.registry import TINY
from server.bench import compare, plots, power, session
from server.bench.api_target import queue_base
from server.bench.ceilings import ceiling_of
from server.bench.driver import Run, Sample, measure, paced
from server.bench.engine_target import EngineTarget
from server.bench.figures import percentile, row, spread
from server.bench.report import write
from server.bench.scenarios import Ask, Cell, Plan, timed
from server.bench.stamp import stamp
from server.bench.target import AskError, BenchError, TargetFacts
from server.cli.failures import CommandError
from server.cli.main import app
from server.workers.nvml import NvmlError, open_nvml

TINY_ARCH = ARCHITECTURES["random:tiny"]
SCRIPTED = (sys.executable, "-m", "tests.server.scripted_worker")


def plan(scenario: str, **changes: Any) -> Plan:
    wishes: dict[str, Any] = {
        "sizes": ((64, 64), (128, 64)),
        "steps": (1, 3),
        "count": 6,
        "clients": 2,
        "rate": None,
        "load": 0.8,
        "seed": 1,
    }
    return Plan(scenario, **(wishes | changes))


class Quiet:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.ended: dict[str, tuple[int, int]] = {}

    def loading(self, stage: str, fraction: float) -> None:
        assert 0 <= fraction <= 1, stage

    def done(self, cell: str, requests: int, of: int) -> None:
        self.ended[cell] = (requests, of)

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)


class Timeless:
    """A target that answers when the test says so, and counts how many wait at once."""

    def __init__(self, fails: bool = False) -> None:
        self.running = self.most = 0
        self.asks: list[Ask] = []
        self._fails = fails

    async def open(self, on_loading: Any) -> TargetFacts:
        return TargetFacts("cpu", "H200", "float32")

    async def generate(self, ask: Ask) -> dict[str, float]:
        self.asks.append(ask)
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        if self._fails:
            raise AskError("no picture today")
        return {"inference": 0.5}

    async def memory(self) -> dict[str, int]:
        return {"used": 2_000_000_000, "peak": 3_000_000_000}

    def notes(self) -> list[str]:
        return ["drawn by nobody"]

    async def close(self) -> None:
        """Nothing to close."""


# What is asked


@pytest.mark.parametrize("scenario", ["single", "closed", "poisson"])
def test_every_size_and_step_count_is_a_row(scenario: str) -> None:
    cells = plan(scenario).cells()
    assert [cell.asks[0].shape for cell in cells] == [(64, 64, 1), (64, 64, 3), (128, 64, 1), (128, 64, 3)]
    assert all(len(cell.asks) == 6 and len(cell.shapes) == 1 for cell in cells)
    assert len({cell.name for cell in cells}) == 4


@pytest.mark.parametrize("scenario", ["single", "mixed"])
def test_acceleration_is_asked_of_every_request(scenario: str) -> None:
    asks = [ask for cell in plan(scenario, acceleration="high").cells() for ask in cell.asks]
    assert {ask.acceleration for ask in asks} == {"high"}


def test_mixed_is_one_row_in_which_every_shape_comes_equally_often() -> None:
    (cell,) = plan("mixed", count=12).cells()
    shapes = [ask.shape for ask in cell.asks]
    assert {shapes.count(shape) for shape in shapes} == {3}
    assert len({ask.guidance for ask in cell.asks}) > 1
    assert cell.clients == 2
    assert (cell,) == tuple(plan("mixed", count=12).cells())


def test_no_prompt_comes_twice_so_that_none_is_found_encoded() -> None:
    target = Timeless()
    run_session(plan("single"), target)
    prompts = [ask.prompt for ask in target.asks]
    assert len(prompts) == len(set(prompts)) == 4 * (6 + 2)


def test_a_rate_makes_an_open_loop_of_that_rate() -> None:
    (cell,) = plan("mixed", count=4000, rate=5.0).cells()
    dues = [ask.due_s or 0 for ask in cell.asks]
    assert cell.clients is None
    assert dues == sorted(dues)
    assert len(dues) / dues[-1] == pytest.approx(5.0, rel=0.1)


def test_a_load_is_a_share_of_the_rate_of_the_warm_up_without_its_first() -> None:
    (cell, *_) = plan("poisson", count=3000).cells()
    assert cell.rate is None
    assert paced(cell, (9.0, 0.5, 0.5), seed=1).rate == pytest.approx(0.8 / 0.5)
    assert paced(cell, (0.5,), seed=1).rate == pytest.approx(0.8 / 0.5)
    with pytest.raises(BenchError, match="--rate"):
        paced(cell, (), seed=1)


# How it runs


def test_a_closed_loop_never_asks_more_at_once_than_it_has_clients() -> None:
    target = Timeless()
    (cell, *_) = plan("closed", count=9, clients=3).cells()
    samples = asyncio.run(measure(target, cell, lambda done, of: None))
    assert target.most == 3
    assert sorted(ask.seed for ask in target.asks) == list(range(1, 10))
    assert all(sample.due_s == sample.sent_s <= sample.done_s for sample in samples)


def test_an_open_loop_counts_from_the_moment_a_request_was_due() -> None:
    asks = tuple(Ask(64, 64, 1, 3.5, "a", seed, due_s=0.02 * seed) for seed in range(3))
    samples = asyncio.run(measure(Timeless(), Cell("x", asks, None), lambda done, of: None))
    assert [sample.due_s for sample in samples] == [0.0, 0.02, 0.04]
    assert all(sample.due_s <= sample.sent_s for sample in samples)
    assert all(sample.latency_s == sample.done_s - sample.due_s for sample in samples)


def run_session(plan: Plan, target: Any, warmup: int = 2, subject: Any = None, **options: Any) -> dict[str, Any]:
    subject = subject or session.Subject("engine", "random:tiny", TINY)
    peak = options.pop("peak_tflops", None)
    return asyncio.run(session.run(plan, subject, target, warmup, peak, options.pop("watcher", Quiet())))


def test_a_scripted_worker_is_measured_in_every_scenario() -> None:
    for scenario in ("closed", "poisson"):
        watcher = Quiet()
        target = EngineTarget(TINY, TINY.name, "cpu", command=SCRIPTED)
        wishes = plan(scenario, sizes=((64, 64),), steps=(2,))
        report = run_session(wishes, target, watcher=watcher)
        (figures,) = report["cells"]
        assert (figures["requests"], figures["failed"], len(figures["warmup_s"])) == (6, 0, 2)
        assert figures["stages_s"]["inference"] == 0.25  # as the script says
        assert watcher.ended == {figures["name"]: (8, 8)}
        assert report["device"]["device_name"] == "a script"
        assert figures["rate"] is None or figures["rate"] > 0
        json.dumps(report)


@pytest.mark.parametrize(("prompt", "sentence"), [("crash", "SIGKILL"), ("model error", "scripted model error")])
def test_a_worker_that_dies_or_refuses_ends_the_benchmark_with_its_reason(
    prompt: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.bench.scenarios.prompt", lambda size, steps, seed: prompt)
    target = EngineTarget(TINY, TINY.name, "cpu", command=SCRIPTED)
    with pytest.raises(BenchError, match=sentence):
        run_session(plan("single", steps=(3,)), target)


def test_a_worker_that_cannot_load_ends_the_benchmark_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPTED_EXIT", "3")
    with pytest.raises(BenchError, match="the checkpoint is not here"):
        run_session(plan("single"), EngineTarget(TINY, TINY.name, "cpu", command=SCRIPTED))


# What is counted


def sample(number: int, latency_s: float, error: str | None = None) -> Sample:
    ask = Ask(64, 64, 3, 3.5, "a", number)
    return Sample(ask, number, number + 0.25, number + latency_s, {"inference": latency_s / 2}, error)


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert percentile([7.0], 0.01) == 7.0
    assert spread([3.0, 1.0]) == {"mean": 2.0, "min": 1.0, "max": 3.0, "p50": 1.0, "p90": 3.0, "p95": 3.0, "p99": 3.0}


def test_the_figures_of_a_row_follow_from_its_samples() -> None:
    samples = (sample(0, 1.0), sample(1, 2.0), sample(2, 9.0, "it broke"), sample(3, 4.0))
    cell = Cell("x", tuple(one.ask for one in samples), None, 1.0)
    figures = row(Run(cell, (5.0,), samples), TINY_ARCH, 16, ceiling_tflops=100.0)
    work = request_flops(TINY_ARCH, 64, 64, 3, 16).total / 1e12
    assert (figures["requests"], figures["failed"], figures["errors"]) == (4, 1, ["it broke"])
    assert figures["span_s"] == 7.0
    assert figures["images_per_s"] == 3 / 7
    assert figures["latency_s"]["p50"] == 2.0
    assert figures["stages_s"] == {"inference": 1.0}
    assert figures["generator_lag_s"]["max"] == 0.25
    assert figures["tflop_per_image"] == pytest.approx(work)
    assert figures["achieved_tflops"] == pytest.approx(3 * work / 7)
    assert figures["floor_s"] == pytest.approx(work / 100)
    assert figures["share_of_ceiling"] == pytest.approx(3 * work / 7 / 100)


def test_without_an_architecture_nothing_is_counted_and_without_a_ceiling_no_share() -> None:
    samples = (sample(0, 1.0),)
    run = Run(Cell("x", (samples[0].ask,)), (), samples)
    assert "tflop_per_image" not in row(run, None, 0, 100.0)
    figures = row(run, TINY_ARCH, 16, None)
    assert "achieved_tflops" in figures
    assert "share_of_ceiling" not in figures


def test_ceilings_are_known_by_the_cards_name() -> None:
    measured = ceiling_of("NVIDIA H200")
    assert measured is not None
    assert measured.tflops == 790
    assert ceiling_of("NVIDIA H100 PCIe") != ceiling_of("NVIDIA H100 80GB HBM3")
    assert ceiling_of("CPU, 2 threads") is None
    given = ceiling_of("NVIDIA H200", 5.0)
    assert given is not None
    assert given.tflops == 5.0


# Power


class Nvml:
    """NVML of a card that draws 300 W and is held back by its power cap; the calls are pynvml's."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    nvmlClocksThrottleReasonNone = 0
    nvmlClocksThrottleReasonGpuIdle = 1
    nvmlClocksThrottleReasonSwPowerCap = 4
    nvmlClocksThrottleReasonHwSlowdown = 8
    nvmlClocksThrottleReasonAll = 13

    class NVMLError(Exception):
        """As pynvml's."""

    def __init__(self, counts_energy: bool) -> None:
        self._millijoules, self._counts_energy = 1_000_000, counts_energy

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: object) -> int:
        if not self._counts_energy:
            raise self.NVMLError("not supported")
        self._millijoules += 60_000
        return self._millijoules

    def nvmlDeviceGetPowerUsage(self, handle: object) -> int:
        return 300_000

    def nvmlDeviceGetClockInfo(self, handle: object, kind: int) -> int:
        return {self.NVML_CLOCK_SM: 1755, self.NVML_CLOCK_MEM: 3201}[kind]

    def nvmlDeviceGetTemperature(self, handle: object, sensor: int) -> int:
        return 61

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: object) -> int:
        return self.nvmlClocksThrottleReasonSwPowerCap | self.nvmlClocksThrottleReasonGpuIdle

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        if index > 7:
            raise self.NVMLError("invalid argument")
        return f"index {index}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return f"uuid {uuid}"


@pytest.mark.parametrize(("counts_energy", "joules"), [(True, 60.0), (False, 600.0)])
def test_energy_is_the_cards_counter_or_else_power_times_time(counts_energy: bool, joules: float) -> None:
    nvml = Nvml(counts_energy)
    with power.PowerMeter(nvml, "card", interval_s=0.001) as meter:
        pass
    figures = meter.figures(span_s=2.0, images=4)
    assert figures["energy_j"] == pytest.approx(joules)
    assert figures["energy_per_image_j"] == pytest.approx(joules / 4)
    assert (figures["mean_w"], figures["memory_mhz"], figures["max_celsius"]) == (300, 3201, 61)
    assert figures["sm_mhz"] == {"min": 1755, "p50": 1755, "max": 1755}
    assert figures["throttled_by"] == ["SwPowerCap"]


@pytest.mark.parametrize(
    ("device", "visible", "handle"),
    [("cuda:1", {}, "index 1"), ("cuda", {"CUDA_VISIBLE_DEVICES": "3,5"}, "index 3"),
     ("cuda:1", {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}, "uuid GPU-b")],
)  # fmt: skip
def test_the_card_is_the_one_that_cuda_means(device: str, visible: dict[str, str], handle: str) -> None:
    assert power.card(Nvml(True), device, visible) == handle


def test_an_unknown_card_or_no_library_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NvmlError, match="cuda:9"):
        power.card(Nvml(True), "cuda:9", {})
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NvmlError, match="pip install nvidia-ml-py"):
        open_nvml()


# Reports


@pytest.fixture
def report() -> dict[str, Any]:
    return run_session(plan("single", steps=(3,)), Timeless(), peak_tflops=0.5)


def test_the_stamp_names_versions_and_machine_and_hides_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/fluxserve", "bench", "--api-key", "secret", "--api-key=secret"])
    facts = stamp("999.1")
    assert facts["command"] == "fluxserve bench --api-key *** --api-key=***"
    assert facts["driver"] == "999.1"
    assert facts["versions"]["torch"].startswith("2.")
    assert facts["cores"] >= 1


def test_a_report_is_written_as_json_and_markdown_and_a_plot(report: dict[str, Any], tmp_path: Path) -> None:
    data, text = write(report, tmp_path / "new" / "folder")
    assert json.loads(data.read_text()) == json.loads(json.dumps(report))
    lines = text.read_text().splitlines()
    headings, values = ([word.strip() for word in line.strip("|").split("|")] for line in (lines[2], lines[4]))
    assert values[0] == "64x64, 3 steps"
    assert values[headings.index("memory GB")] == "3.00"
    assert "failed" not in headings
    assert any("Ceiling: 0.5 TFLOP/s, --peak-tflops" in line for line in lines)
    plots.plot(report, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_line_says_what_to_install(
    report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(plots.NoPlotsError, match="pip install matplotlib"):
        plots.plot(report, tmp_path / "plot.png")


def test_ratios_are_the_second_over_the_first(report: dict[str, Any]) -> None:
    other = json.loads(json.dumps(report))
    other["cells"][0]["latency_s"]["p50"] *= 0.5
    other["cells"][0]["images_per_s"] *= 3
    other["cells"][0]["memory_bytes"] = {}
    (first, *_) = compare.ratios(report, other)
    assert first["p50"] == pytest.approx(0.5)
    assert first["images/s"] == pytest.approx(3)
    assert (first["memory"], first["J/image"]) == (None, None)
    assert "0.500" in compare.markdown(report, other)


@pytest.mark.parametrize(
    ("change", "word"),
    [({"scenario": "closed"}, "scenario"), ({"model": "FLUX.1-dev"}, "model"), ({"cells": []}, "measured")],
)
def test_different_things_are_not_compared(report: dict[str, Any], change: dict[str, Any], word: str) -> None:
    with pytest.raises(BenchError, match=word):
        compare.ratios(report, report | change)


@pytest.mark.parametrize("content", [None, "not json", "[]", '{"format": "another"}'])
def test_what_is_no_report_is_named(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(BenchError, match=r"report\.json"):
        compare.read(file)


def test_a_row_in_which_everything_fails_is_no_report() -> None:
    with pytest.raises(BenchError, match="64x64, 1 steps: every request failed: no picture today"):
        run_session(plan("single"), Timeless(fails=True), warmup=0)


def test_a_shape_that_the_target_refuses_is_named_before_anything_is_measured() -> None:
    with pytest.raises(BenchError, match="64x64 with 1 steps: no picture today"):
        run_session(plan("single"), Timeless(fails=True))


@pytest.mark.parametrize(
    ("url", "queue"),
    [
        ("https://queue.fal.run", "https://queue.fal.run"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/queue"),
        ("https://gpu.example.com/fal/queue", "https://gpu.example.com/fal/queue"),
    ],
)
def test_a_base_address_leads_to_the_queue(url: str, queue: str) -> None:
    assert queue_base(url) == queue


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(BenchError, match="--url"):
        queue_base("127.0.0.1:8000")


# The command


def bench(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    script = str(Path(sys.executable).with_name("fluxserve"))
    done = subprocess.run([script, "bench", *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.timeout(900)
def test_the_engine_and_a_server_of_its_own_are_measured_and_compared(tmp_path: Path) -> None:
    flags = ["--model", "random:tiny", "--device", "cpu", "--sizes", "64x64,128x64", "--steps", "1,2", "--count", "3"]
    flags += ["--acceleration", "regular"]
    reports = []
    for target in ("engine", "api"):
        folder = tmp_path / target
        shown = bench("closed", *flags, "--target", target, "--clients", "2", "--warmup", "1", "-o", str(folder))
        (file,) = folder.glob("*.json")
        assert {path.suffix for path in folder.iterdir()} == {".json", ".md", ".png"}
        assert shown.stdout.startswith(f"# closed: random:tiny through the {target}, CPU")
        report = json.loads(file.read_text())
        reports.append(file)
        # What a processor cannot do is said where it is known: the API tells it in each request's log.
        assert ("drawn exactly" in shown.stdout) == (target == "engine")
        assert [cell["name"] for cell in report["cells"]][:2] == [
            "64x64, 1 steps, 2 clients",
            "64x64, 2 steps, 2 clients",
        ]
        for cell, size in zip(report["cells"], [(64, 64), (64, 64), (128, 64), (128, 64)], strict=True):
            assert (cell["requests"], cell["failed"], len(cell["warmup_s"])) == (3, 0, 1)
            steps = cell["samples"][0]["steps"]
            counted = request_flops(TINY_ARCH, *size, steps, TINY.max_sequence_length).total / 1e12
            assert cell["tflop_per_image"] == pytest.approx(counted)
            assert cell["memory_bytes"]["peak"] > 50e6
            assert cell["stages_s"]["inference"] > 0
    ratios = json.loads(bench("compare", *map(str, reports), "--json").stdout)
    assert len(ratios) == 4
    assert all(row["p50"] > 0 for row in ratios)


def test_wrong_usage_is_refused_before_anything_starts(tmp_path: Path) -> None:
    for flags, word in (
        (["single", "--sizes", "huge"], "--sizes"),
        (["single", "--steps", "0"], "--steps"),
        (["single", "--model", "nonsense"], "flux-shapes"),
        (["single", "--url", "http://127.0.0.1:1"], "--target api"),
        (["single", "--target", "api", "--model", "flux-shapes-fill"], "nothing from text alone"),
        (["poisson", "--rate", "-1"], "--rate"),
        (["single", "--acceleration", "most"], "--acceleration"),
        (["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")], "a.json"),
    ):
        assert word in bench(*flags, code=2).stderr


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        ((), "fal-ai/flux/dev"),
        (("--model", "FLUX.2-klein-4B"), "fal-ai/flux-2/klein/4b"),
        (("--model", "FLUX.2-klein-4B", "--endpoint", "fal-ai/flux-2-pro"), "fal-ai/flux-2-pro"),
    ],
)
def test_a_server_is_asked_at_an_endpoint_of_the_model(flags: tuple[str, ...], asked: str, tmp_path: Path) -> None:
    seen = []

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def do_POST(self) -> None:
            seen.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        there = ("--target", "api", "--url", f"http://127.0.0.1:{server.server_port}", "-o", str(tmp_path))
        words = ["bench", "single", *there, *flags, "--count", "1", "--warmup", "0"]
        with pytest.raises(CommandError, match="every request failed"):
            CliRunner().invoke(app, words, catch_exceptions=False)
        server.shutdown()
    assert seen == [f"/queue/{asked}"]


def test_a_server_that_is_not_there_is_said_to_be_unreachable() -> None:
    failed = bench("single", "--target", "api", "--url", "http://127.0.0.1:1", code=3)
    assert "cannot reach http://127.0.0.1:1" in failed.stderr


def test_timed_keeps_the_requests_and_their_order() -> None:
    (cell, *_) = plan("poisson").cells()
    assert [ask.seed for ask in timed(cell, 2.0, 1).asks] == [ask.seed for ask in cell.asks]
