"""What a starting server tells its operator: addresses, protection, model, and one line for a first picture."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from server.api.clients import OPEN_KEY, UNKNOWN_KEY, ServerAddress, curl
from server.cli.output import PatientWriter
from server.http import running, tls
from server.settings import WILDCARD_HOSTS, Settings, is_loopback

POLL_S = 0.1
REPORT_S = 5.0
"""Pause between two lines about one worker's loading."""


class Greeting:
    """Prints the addresses when the server listens and the models when they are loaded."""

    def __init__(self, settings: Settings, port: int, tls_port: int | None, out: PatientWriter) -> None:
        self._settings = settings
        self._out = out
        self._reach = reach(settings, port, tls_port)
        self._said: set[str] = set()
        self._reported: dict[str, float] = {}

    async def follow(self, health: Callable[[], dict[str, Any]]) -> None:
        """Greet, then report loading until every worker is up; runs until cancelled.

        While it runs, the data folder holds the note that tells other commands our addresses."""
        data_dir = self._settings.data_dir
        protected = self._settings.is_protected
        try:
            running.write(data_dir, running.of_this_process(self._reach.url, self._reach.tls_url, protected))
        except OSError as exc:
            self._say(f"other commands will not find this server: {data_dir} takes no note of it ({exc.strerror})")
        try:
            self._say(*self._addresses())
            while not (state := health())["ready"]:
                self._report_workers(state)
                await asyncio.sleep(POLL_S)
            self._say(*self._models(state), "first picture:", f"  {self._first_picture()}")
            self._say("other clients: fluxserve env")
            await asyncio.Event().wait()
        finally:
            running.remove(data_dir)

    def _addresses(self) -> list[str]:
        lines = [f"fluxserve {version('fluxserve')}", f"  {self._reach.url}"]
        if self._reach.tls_url:
            own = self._settings.tls_cert
            issuer = f"certificate: {own}" if own else f"authority: {tls.files_of(self._settings.data_dir).ca}"
            lines.append(f"  {self._reach.tls_url}  ({issuer})")
        return [*lines, self._protection()]

    def _protection(self) -> str:
        if self._settings.is_protected:
            issued = ", those of `fluxserve keys list`" if self._settings.key_file.exists() else ""
            return f"protected: {len(self._settings.api_keys)} API key(s) of the settings{issued}"
        who = "only this machine" if is_loopback(self._settings.host) else "ANYONE WHO REACHES THIS ADDRESS"
        return f"open: no key protects it; {who} can use it"

    def _report_workers(self, state: dict[str, Any]) -> None:
        for problem in state["problems"]:
            self._say_once(f"not ready: {problem}")
        for worker in state["workers"]:
            if worker["last_error"]:
                self._say_once(f"{worker['device']}: {worker['last_error']}")
            elif worker["model"]:
                self._say_once(f"loading {worker['model']} on {worker['device']}")
                self._report_progress(worker)

    def _report_progress(self, worker: dict[str, Any]) -> None:
        """One line now and then while loading takes long; none when it does not."""
        now = time.monotonic()
        if now - self._reported.setdefault(worker["device"], now) >= REPORT_S:
            self._reported[worker["device"]] = now
            self._say(f"{worker['model']} on {worker['device']}: {worker['stage']}, {worker['fraction']:.0%}")

    def _models(self, state: dict[str, Any]) -> list[str]:
        devices = ", ".join(f"{w['device']} ({w['device_name']})" for w in state["workers"] if w["state"] == "ready")
        return [f"ready: {_describe(model)} on {devices}" for model in state["models"]]

    def _first_picture(self) -> str:
        # Logs are kept and shared: the key itself never goes there.
        key = UNKNOWN_KEY if self._settings.is_protected else OPEN_KEY
        return curl(replace(self._reach, key=key)).lines[0]

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._say(line)

    def _say(self, *lines: str) -> None:
        self._out.write("\n".join(lines) + "\n")


def reach(settings: Settings, port: int, tls_port: int | None) -> ServerAddress:
    """How clients on this machine reach a server with these settings, or anyone by its public URL."""
    unnamed = UNKNOWN_KEY if settings.is_protected else OPEN_KEY
    key = settings.api_keys[0] if settings.api_keys else unnamed
    if settings.public_url:
        is_https = urlsplit(settings.public_url).scheme == "https"
        return ServerAddress(settings.public_url, settings.public_url if is_https else None, None, key)
    host = "localhost" if settings.host in WILDCARD_HOSTS else settings.host
    name = f"[{host}]" if ":" in host else host
    bundle = tls.files_of(settings.data_dir).bundle
    return ServerAddress(f"http://{name}:{port}", f"https://{name}:{tls_port}" if tls_port else None, bundle, key)


def _describe(model: dict[str, Any]) -> str:
    checker = "with safety checker" if model["has_safety_checker"] else "WITHOUT safety checker"
    return f"{model['name']} ({model['dtype']}, {checker}, loaded in {model['load_s']:.1f} s)"
