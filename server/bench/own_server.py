"""A server of our own to measure: `fluxserve serve` in its own process, on a free port, with a folder of its own."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path

import httpx

from server.bench.api_target import ApiTarget
from server.bench.scenarios import Ask
from server.bench.target import BenchError, OnLoading, TargetFacts
from server.http import running

_SERVE = (sys.executable, "-c", "from server.cli.main import main; main()", "serve", "--port", "0", "--tls-port", "0")
_POLL_S = 0.1
_STOP_S = 30.0


class OwnServer:
    """An API target that starts its server and takes it down again."""

    def __init__(self, endpoint: str, arguments: tuple[str, ...]) -> None:
        self._endpoint = endpoint
        self._arguments = arguments
        self._folder = tempfile.TemporaryDirectory(prefix="fluxserve-bench-")
        self._process: asyncio.subprocess.Process | None = None
        self._api: ApiTarget | None = None

    async def open(self, on_loading: OnLoading) -> TargetFacts:
        data_dir = Path(self._folder.name)
        command = [*_SERVE, "--data-dir", str(data_dir), *self._arguments]
        with (data_dir / "output.log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command, stdout=log, stderr=asyncio.subprocess.STDOUT, env=_environment()
            )
        url = await self._ready_url(data_dir, on_loading)
        self._api = ApiTarget(url, self._endpoint, is_local=True)
        return await self._api.open(on_loading)

    async def generate(self, ask: Ask) -> dict[str, float]:
        return await self._opened().generate(ask)

    async def memory(self) -> dict[str, int]:
        return await self._opened().memory()

    def notes(self) -> list[str]:
        return self._opened().notes()

    async def close(self) -> None:
        if self._api is not None:
            await self._api.close()
        if self._process is not None:
            await _end(self._process)
        self._folder.cleanup()

    def _opened(self) -> ApiTarget:
        assert self._api is not None, "the target was not opened"
        return self._api

    async def _ready_url(self, data_dir: Path, on_loading: OnLoading) -> str:
        """The address, once a worker has loaded the model. Raises: BenchError."""
        async with httpx.AsyncClient(timeout=10, verify=False) as http:
            while True:
                if self._process is None or self._process.returncode is not None:
                    raise BenchError(f"the server ended before it was ready: {_last_line(data_dir)}")
                if (note := running.read(data_dir)) is not None:
                    try:
                        health = (await http.get(f"{note.url}/health")).json()
                    except httpx.HTTPError:
                        health = {"ready": False, "workers": []}
                    if health["ready"]:
                        return note.url
                    for worker in health["workers"]:
                        if worker["state"] == "restarting":
                            raise BenchError(str(worker["last_error"]))
                        on_loading(worker["stage"] or "starting", worker["fraction"])
                await asyncio.sleep(_POLL_S)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask it to stop, and kill it if it does not; its worker then sees that its node is gone."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(_STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _environment() -> dict[str, str]:
    """Ours without settings meant for another server, its keys for instance."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FLUXSERVE_")}


def _last_line(data_dir: Path) -> str:
    lines = (data_dir / "output.log").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
