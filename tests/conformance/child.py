"""An official client in a process of its own that takes pieces of code: one start serves all tests of a session.

A piece of code is the body of a function that a user of the client would write; its `return` comes back as JSON. What
the client raises comes back as `ClientFailed`. Nothing in a piece knows an address: the process is set up once, as
`fluxserve env` prints it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.acceptance.serving import ROOT, Server, clean_environment

HERE = Path(__file__).parent
JS = ROOT / "tests" / "acceptance" / "js"


class ClientFailed(Exception):
    """The client raised; `facts` are the error's public fields, with its class under `name`."""

    def __init__(self, facts: dict[str, Any]) -> None:
        super().__init__(json.dumps(facts)[:2000])
        self.facts = facts

    @property
    def name(self) -> str:
        """Class of the error."""
        return str(self.facts["name"])

    @property
    def status(self) -> int:
        """HTTP status as the client's error has it."""
        return int(self.facts["status"])


class Child:
    """One client process. It is started at the first use, and again after `kill` or a piece that never ended."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command = list(command)
        self._environment = dict(environment)
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, code: str, **names: Any) -> Any:
        """Run a piece of code with these variables and return what it returns. Raises: ClientFailed."""
        self.start(code, **names)
        return self.result()

    def fails(self, code: str, **names: Any) -> ClientFailed:
        """Run a piece that must raise; the error."""
        self.start(code, **names)
        return self.failure()

    def failure(self) -> ClientFailed:
        """The error that the piece which was started must raise."""
        try:
            value = self.result()
        except ClientFailed as failed:
            return failed
        raise AssertionError(f"the client raised nothing and returned {value!r}")

    def start(self, code: str, **names: Any) -> None:
        """Begin a piece; `result` waits for it. A process does one at a time."""
        if self._process is not None and self._process.poll() is not None:
            self.kill()  # it ended by itself; its pipes are closed
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
                cwd=JS,  # where Node finds the client
                env=clean_environment() | self._environment,
            )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"code": textwrap.dedent(code), "names": names}) + "\n")

    def result(self) -> Any:
        """What the piece that was started returns. Raises: ClientFailed."""
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            line = self._process.stdout.readline()
        except BaseException:
            self.kill()  # the test's time is up, or it was interrupted
            raise
        assert line, f"the client process ended with {self._process.wait()}"
        answer = json.loads(line)
        if "error" in answer:
            raise ClientFailed(answer["error"])
        return answer.get("value")

    def kill(self) -> None:
        """End the process at once, as a machine that loses its power would: open connections break."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process = None


def python_child(server: Server, **changes: str) -> Child:
    """`fal_client`, set up as `fluxserve env --client python` says; `changes` go over that."""
    return Child([sys.executable, str(HERE / "python_child.py")], server.setup("python") | changes)


def proxied_child(server: Server) -> Child:
    """`fal_client`, set up as `fluxserve env --client python-proxy` says: every host of fal is this server."""
    return Child([sys.executable, str(HERE / "python_child.py")], server.setup("python-proxy"))


def js_child(server: Server, *flags: str, **changes: Any) -> Child:
    """`@fal-ai/client` in Node, set up as `fluxserve env --client js` says; `changes` go over fal.config's argument.

    Args: flags: of Node itself.
    """
    environment = {"FAL_CONFIG": json.dumps(server.setup("js") | changes), "SERVER_URL": server.url}
    trust = {"NODE_EXTRA_CA_CERTS": str(server.data_dir / "tls" / "ca.pem")}
    return Child(["node", *flags, str(JS / "child.mjs")], environment | trust)
