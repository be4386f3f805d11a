"""What `fluxserve doctor` finds of the data folder: can it be written, is what lies in it sound, is it private."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from server.cli.finding import Finding, Verdict
from server.files import disk, picture_pool
from server.files.private import DamagedSecretError
from server.http import tls
from server.settings import Settings

SCARCE = 2e9
"""Less than this is worth a warning: pictures are kept for days."""


def storage(settings: Settings) -> list[Finding]:
    """The data folder and everything in it that a start or a request would need."""
    folder = settings.data_dir
    if not folder.exists():
        return [_made_at_the_start(folder), _encoder()]
    files = [_files(folder / "files")] if settings.objects is None else []
    store = [_store(folder / "jobs.db")] if settings.store is None else []
    return [_folder(folder), *files, *store, *_secrets(folder), _encoder()]


def certificate(settings: Settings) -> list[Finding]:
    """The certificate that would be served, by the same look that serving takes."""
    if not settings.tls_port:
        return [Finding("certificate", "warning", "TLS is off", "the Python clients need it: give a --tls-port")]
    own = (settings.tls_cert, settings.tls_key) if settings.tls_cert and settings.tls_key else None
    try:
        served, end = tls.examine_own(*own) if own else tls.examine(settings.data_dir)
    except tls.TlsError as exc:
        return [Finding("certificate", "broken", str(exc))]
    if end is None:
        return [Finding("certificate", "ok", "made at the first start")]
    if end < datetime.now(UTC):
        advice = "put a newer one there" if own else "restart the server: it renews what it has made itself"
        return [Finding("certificate", "broken", f"{served} ended on {end:%Y-%m-%d}", advice)]
    return [Finding("certificate", "ok", f"{served}, valid until {end:%Y-%m-%d}")]


def _made_at_the_start(folder: Path) -> Finding:
    parent = next(parent for parent in folder.parents if parent.exists())
    why = disk.why_not_writable(parent)
    if why is not None:
        return Finding("data folder", "broken", f"{folder} cannot be made: {why}", "give another with --data-dir")
    return Finding("data folder", "ok", f"{folder}, made at the first start, {_free(parent)}")


def _folder(folder: Path) -> Finding:
    why = disk.why_not_writable(folder)
    if why is not None:
        return Finding(
            "data folder", "broken", f"{folder} takes no writes: {why}", "mend it or give another --data-dir"
        )
    detail = f"{folder}, {_free(folder)}"
    if folder.stat().st_mode & 0o077:
        return Finding("data folder", "warning", f"{detail}; others may look into it", f"chmod 700 {folder}")
    if shutil.disk_usage(folder).free < SCARCE:
        return Finding("data folder", "warning", detail, "pictures are kept for --retention-s seconds")
    return Finding("data folder", "ok", detail)


def _files(folder: Path) -> Finding:
    why = disk.why_not_writable(folder) if folder.exists() else None
    if why is not None:
        return Finding("pictures", "broken", f"{folder} takes no writes: {why}", "no picture could be stored: mend it")
    return Finding("pictures", "ok", f"{folder} takes them, {_free(folder if folder.exists() else folder.parent)}")


def _store(path: Path) -> Finding:
    from server.jobs.store.opening import why_unusable

    why = why_unusable(path)
    if why is not None:
        return Finding("queue", "broken", why, "put a backup in its place, with no -wal and -shm file beside it")
    return Finding("queue", "ok", f"{path} is sound" if path.exists() else "made at the first start")


def _secrets(folder: Path) -> list[Finding]:
    from server.gateway.tokens import Tokens
    from server.jobs.signing import Signer

    readers: dict[str, Callable[[Path], object]] = {"token-secret": Tokens.of, "webhook-key.pem": Signer.of}
    return [_secret(folder, name, read) for name, read in readers.items() if (folder / name).exists()]


def _secret(folder: Path, name: str, read: Callable[[Path], object]) -> Finding:
    try:
        read(folder)
    except DamagedSecretError as exc:
        return Finding("secret", "broken", str(exc))
    found = (folder / name).stat()
    # What others own is put there by them, as by Kubernetes, which lets our group read it.
    is_open = bool(found.st_mode & 0o077) and found.st_uid == os.geteuid()
    verdict: Verdict = "warning" if is_open else "ok"
    return Finding("secret", verdict, str(folder / name), f"chmod 600 {folder / name}" if is_open else "")


def _encoder() -> Finding:
    why = picture_pool.why_unusable()
    if why is not None:
        return Finding("encoder", "broken", why, "mount /dev/shm, and leave it some room")
    return Finding("encoder", "ok", "processes that encode pictures can be started")


def _free(folder: Path) -> str:
    return f"{shutil.disk_usage(folder).free / 1e9:.1f} GB free"
