"""A recording: a folder with a line of JSON a request, and the pictures that went in and came out as files."""

from __future__ import annotations

import errno
import hashlib
import json
import mimetypes
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

Mode = Literal["run", "queue", "stream"]
MARK = "recorded:"
"""In place of an address: the name of a file of the recording follows."""


class RecordingError(Exception):
    """No recording can be read there; the message is one sentence."""


@dataclass(frozen=True)
class Entry:
    """One request from its submit to its end, without a header, and so without a key.

    Args:
        asked_at: ISO 8601, UTC.
        seconds: from the submit to its end as its caller could first see it.
        inference: seconds that the server says it computed; None if it says nothing.
        status: of the answer: HTTP's; 0 if the end was not seen.
        input, answer: JSON, with files of the recording in place of addresses.
    """

    endpoint: str
    mode: Mode
    asked_at: str
    seconds: float
    inference: float | None
    status: int
    input: Any
    answer: Any

    @property
    def is_good(self) -> bool:
        """Whether it ended with a result."""
        return 200 <= self.status < 300


_ENTRY = TypeAdapter(Entry)


def _own(path: str, flags: int) -> int:
    """Prompts and pictures are read by nobody else."""
    return os.open(path, flags, 0o600)


class Recording:
    """Args: folder: made when the first entry is kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines = folder / "requests.jsonl"

    def keep(self, entry: Entry) -> None:
        """Add an entry at the end."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        line = (json.dumps(asdict(entry)) + "\n").encode()
        with open(self._lines, "ab", buffering=0, opener=_own) as file:
            before = file.tell()
            if file.write(line) < len(line):
                file.truncate(before)  # the next line must not go on where this one broke off
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def keep_file(self, content: bytes, content_type: str) -> str:
        """What stands for a file in entries. Equal files are kept once."""
        suffix = mimetypes.guess_extension(content_type.partition(";")[0].strip()) or ".bin"
        name = hashlib.sha256(content).hexdigest()[:32] + suffix
        place = self._folder / "files" / name
        if not place.exists():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            place.parent.mkdir(mode=0o700, exist_ok=True)
            whole = place.with_name(f"{name}.part")
            with open(whole, "wb", opener=_own) as file:
                file.write(content)
            whole.rename(place)  # half a file must not be taken for the whole one later
        return MARK + name

    def file(self, mark: str) -> tuple[bytes, str]:
        """Content and type of what `keep_file` gave a mark. Raises: RecordingError."""
        name = Path(mark.removeprefix(MARK)).name
        try:
            content = (self._folder / "files" / name).read_bytes()
        except (OSError, ValueError) as exc:
            raise RecordingError(f"the recording lacks its file {name}") from exc
        return content, mimetypes.guess_type(name)[0] or "application/octet-stream"

    def entries(self) -> list[Entry]:
        """All of them, in the order of their asking. Raises: RecordingError."""
        try:
            lines = self._lines.read_bytes().split(b"\n")
        except OSError as exc:
            raise RecordingError(f"{self._lines} is no recording of fluxserve record: {exc.strerror}") from exc
        found = [self._entry(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
        return sorted(found, key=lambda entry: entry.asked_at)

    def _entry(self, number: int, line: bytes) -> Entry:
        try:
            return _ENTRY.validate_json(line)
        except ValidationError as exc:
            what = exc.errors(include_url=False, include_input=False)[0]["msg"]
            raise RecordingError(
                f"{self._lines} is no recording of fluxserve record, or is damaged: line {number}: {what}"
            ) from exc
