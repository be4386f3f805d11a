"""The processes themselves: what they load, say, and how they end."""

from __future__ import annotations

import fcntl
import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from server.http import running
from tests.acceptance.serving import COMMAND, Server, clean_environment

TINY = {"prompt": "x", "image_size": {"width": 64, "height": 64}, "num_inference_steps": 1}


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Server]:
    """A server of its own, with the smallest random model; not yet started."""
    server = Server(tmp_path / "node", model="random:tiny")
    yield server
    server.close()


def libraries(pid: int) -> str:
    """The files mapped into a process."""
    return Path(f"/proc/{pid}/maps").read_text()


def until(holds: Callable[[], bool], within_s: float = 60.0) -> None:
    """Wait until something is true; fails the test when it never is."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_the_node_process_never_loads_torch(server: Server) -> None:
    httpx.post(f"{server.url}/run/fal-ai/flux/dev", json=TINY, timeout=60).raise_for_status()
    assert "torch" not in libraries(server.pid)
    assert server.worker_pids()
    for pid in server.worker_pids():
        assert "libtorch" in libraries(pid)


def test_it_says_where_it_is_and_what_it_serves(server: Server) -> None:
    output = server.output
    assert server.url in output
    assert f"{server.tls_url}  (authority: {server.data_dir / 'tls' / 'ca.pem'})" in output
    assert "open: no key protects it; only this machine can use it" in output
    assert re.search(r"^ready: \S+ \(float32, .*safety checker, loaded in [\d.]+ s\) on .*CPU", output, re.MULTILINE)


def test_the_line_it_offers_for_a_first_picture_works_as_it_stands(server: Server) -> None:
    (line,) = [line.strip() for line in server.output.splitlines() if line.strip().startswith("curl ")]
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=90)
    (image,) = json.loads(done.stdout)["images"]
    assert httpx.get(image["url"]).headers["content-type"] == "image/jpeg"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(tiny: Server, number: signal.Signals) -> None:
    tiny.start().wait_ready()
    workers = tiny.worker_pids()
    assert running.read(tiny.data_dir) is not None
    assert tiny.stop(number) == 0
    assert running.read(tiny.data_dir) is None
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert "Traceback" not in tiny.output


def test_a_stop_that_arrives_twice_is_one_stop(tiny: Server) -> None:
    tiny.start().wait_live()
    assert tiny.process is not None
    tiny.process.send_signal(signal.SIGTERM)
    assert tiny.stop() == 0
    assert "Traceback" not in tiny.output


def test_a_request_under_way_outlives_a_stop(tiny: Server) -> None:
    tiny.start().wait_ready()
    slow = TINY | {"num_inference_steps": 20, "image_size": {"width": 256, "height": 256}}
    job = httpx.post(f"{tiny.url}/queue/fal-ai/flux/dev", json=slow).json()
    until(lambda: httpx.get(job["status_url"]).json()["status"] != "IN_QUEUE")
    assert tiny.stop() == 0
    tiny.start().wait_live()
    until(lambda: httpx.get(job["response_url"]).status_code == 200)
    assert httpx.get(job["response_url"]).json()["images"][0]["width"] == 256


def test_a_stop_that_reaches_every_process_is_a_drain_too(tiny: Server) -> None:
    """As systemd stops a unit: SIGTERM to all of its processes."""
    tiny.start().wait_ready()
    slow = TINY | {"num_inference_steps": 30, "image_size": {"width": 256, "height": 256}}
    with ThreadPoolExecutor(1) as pool:
        once = {"X-Fal-No-Retry": "true"}
        answer = pool.submit(httpx.post, f"{tiny.url}/run/fal-ai/flux/dev", json=slow, headers=once, timeout=60)
        until(lambda: tiny.health()["queue"]["running"] == 1)
        for process in psutil.Process(tiny.pid).children(recursive=True):
            process.send_signal(signal.SIGTERM)
        assert tiny.stop() == 0
        assert answer.result().status_code == 200
    assert tiny.output.count("is ready:") == 1


def test_a_run_that_takes_too_long_for_a_stop_is_told_so_as_fal_would(tiny: Server) -> None:
    tiny.start().wait_ready()
    endless = TINY | {"num_inference_steps": 50, "image_size": {"width": 1024, "height": 1024}}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, f"{tiny.url}/run/fal-ai/flux/dev", json=endless, timeout=60)
        until(lambda: tiny.health()["queue"]["running"] == 1)
        assert tiny.stop() == 0
    told = answer.result()
    assert (told.status_code, told.headers["x-fal-retryable"]) == (503, "true")
    assert told.json() == {"detail": "The server is stopping", "error_type": "runner_disconnected"}
    assert "Traceback" not in tiny.output


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_readers_of_the_output_that_stall_or_leave_do_no_harm(tmp_path: Path, stream: str) -> None:
    command = [
        *COMMAND,
        "serve",
        "--port",
        "0",
        "--tls-port",
        "0",
        "--data-dir",
        str(tmp_path),
        "--model",
        "random:tiny",
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | {stream: subprocess.PIPE}
    process = subprocess.Popen(command, env=clean_environment(), **quiet)  # type: ignore[call-overload]
    pipe = getattr(process, stream)
    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)
    until(lambda: running.read(tmp_path) is not None)
    note = running.read(tmp_path)
    assert note is not None
    until(lambda: httpx.get(f"{note.url}/readyz").status_code == 200)
    for _ in range(60):  # two lines each, and nobody reads
        httpx.post(f"{note.url}/queue/fal-ai/flux/dev", json=TINY).raise_for_status()
    assert httpx.get(f"{note.url}/livez", timeout=5).status_code == 200
    pipe.close()
    httpx.post(f"{note.url}/run/fal-ai/flux/dev", json=TINY, timeout=60).raise_for_status()
    assert running.read(tmp_path) is not None
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def test_an_answer_under_way_still_arrives_after_the_signal(tiny: Server) -> None:
    tiny.start().wait_ready()
    slow = TINY | {"num_inference_steps": 30, "image_size": {"width": 256, "height": 256}}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, f"{tiny.url}/run/fal-ai/flux/dev", json=slow, timeout=60)
        until(lambda: tiny.health()["queue"]["running"] == 1)
        assert tiny.stop() == 0
        assert answer.result().status_code == 200


def test_a_second_server_on_the_same_data_folder_is_refused(tiny: Server, tmp_path: Path) -> None:
    tiny.start().wait_live()
    second = Server(tiny.data_dir, model="random:tiny").start()
    assert second.process is not None
    assert second.process.wait(30) == 3
    assert running.read(tiny.data_dir) is not None


def test_a_taken_port_is_one_sentence(tiny: Server, tmp_path: Path) -> None:
    tiny.start().wait_live()
    command = [*COMMAND, "serve", "--port", str(tiny.port), "--tls-port", "0", "--data-dir", str(tmp_path / "other")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=clean_environment())
    assert done.returncode == 3
    assert done.stderr.startswith(f"fluxserve: port {tiny.port} of 127.0.0.1 is in use")
    assert done.stderr.count("\n") == 1


def test_env_finds_the_running_server_without_being_told_its_ports(tiny: Server) -> None:
    tiny.start().wait_live()
    assert tiny.setup("python")["FAL_RUN_HOST"] == f"127.0.0.1:{tiny.tls_port}/run"
    assert tiny.setup("js")["proxyUrl"]["url"] == f"{tiny.url}/api/fal/proxy"
