"""LoRA files named on the command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from models.adapter_files import AdapterError
from pipelines.protocol.conditions import Adapter
from server.cli.failures import USAGE, CommandError
from server.files.adapter_store import AdapterStore


@contextmanager
def loras_of(named: Sequence[str]) -> Iterator[tuple[tuple[Adapter, ...], Path | None]]:
    """The adapters that FILE or FILE@SCALE mean, and the folder that holds copies of them. Raises: CommandError."""
    if not named:
        yield (), None
        return
    with TemporaryDirectory(prefix="fluxserve-loras-") as folder:
        store = AdapterStore(Path(folder), max_bytes=1 << 40)
        yield tuple(_adapter(store, argument) for argument in named), store.folder


def _adapter(store: AdapterStore, argument: str) -> Adapter:
    text, at, number = argument.rpartition("@")
    if not at or Path(argument).exists():
        text, number = argument, "1"
    try:
        return Adapter(store.copy(Path(text).expanduser()), float(number))
    except (AdapterError, ValueError, OSError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise CommandError(f"--lora {argument}: {reason}", USAGE) from exc
