"""Where a checkpoint's files are, fetched if they have to be: no torch, no pickle."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoFile

from models.arguments import read_object
from models.errors import LoadError
from models.files.folder import index_in, part_in
from models.files.wanted import needed, parts_of, small
from models.first_look import first_look
from models.registry import ModelSpec

_HTTP_ERROR: type[BaseException] = HfHubHTTPError.__bases__[0]
"""Of whichever HTTP library the hub's client uses."""
_SHA256 = 64
_CHECKSUM = re.compile(f"[0-9a-f]{{40}}|[0-9a-f]{{{_SHA256}}}")
_NOTES = Path(".cache", "huggingface", "download")
"""Where the hub's client notes what it put into a plain folder: commit, checksum and time, a line each."""
_BARE = ("redux", "controlnet", "depth-estimator")
"""Variants that may be one model in no folder of its own."""


def locate(spec: ModelSpec) -> Path:
    """The local folder of a checkpoint, fetched into the Hugging Face cache if it has to be.

    The weights of a part whose place a single file takes are not wanted. What was fetched is compared with the hub's
    checksums, once. Honours HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE.
    Raises: LoadError, also for files that are not what the hub says; those are deleted.
    """
    folder = Path(spec.source)
    if folder.is_dir():
        return folder
    folder = _whole(spec)
    if _unseen(folder).is_file():
        names = [name for name in _unseen(folder).read_text().splitlines() if (folder / name).is_file()]
        noted = {name: checksum for name in names if (checksum := _noted(folder / name))}
        if len(noted) < len(names) and spec.fetches:  # a cache without links
            noted |= {name: checksum for name, checksum in _listed(spec, folder).items() if name in names}
        _compare(spec, folder, noted)
    return folder


def _whole(spec: ModelSpec) -> Path:
    """The folder of the cache with all that serving reads, not compared yet. Raises: LoadError."""
    folder = Path(spec.source)
    if folder.is_absolute():
        raise LoadError(f"model {spec.name}: the folder {spec.source} does not exist.")
    try:
        return _fetched(spec)
    except GatedRepoError as exc:
        raise LoadError(
            f"model {spec.name}: {spec.source} is gated; accept its licence at {constants.ENDPOINT}/{spec.source} "
            "and set HF_TOKEN to a token of that account."
        ) from exc
    except (RepositoryNotFoundError, RevisionNotFoundError) as exc:
        raise LoadError(
            f"model {spec.name}: Hugging Face has no repository {spec.source}"
            f"{f' at {spec.revision}' if spec.revision else ''} that this token may see; check the name, or HF_TOKEN."
        ) from exc
    except (LocalEntryNotFoundError, _HTTP_ERROR, OSError) as exc:
        raise LoadError(
            f"model {spec.name}: {spec.source} is not whole in the local cache and could not be fetched; "
            f"run `fluxserve pull {spec.source}` where there is network, or point HF_HOME at a cache that has it."
        ) from exc


def pull(spec: ModelSpec) -> Path:
    """Fetch a checkpoint, or what is missing of it, and compare every file with the hub's checksum.

    Returns: its folder. Raises: LoadError, also for files that are not what the hub says; those are deleted.
    """
    folder = _whole(spec)
    if spec.variant not in _BARE and not index_in(folder).is_file():
        raise LoadError(
            f"model {spec.name}: {spec.source} has no model_index.json, so it is no checkpoint in diffusers' layout; "
            f"fetch the single file that you want (`hf download {spec.source} FILE`) and give it as --transformer FILE."
        )
    _compare(spec, folder, _listed(spec, folder))
    _clear_leftovers(folder)
    return folder


def _listed(spec: ModelSpec, folder: Path) -> dict[str, str]:
    """The hub's checksums of what is in a folder of the cache. Raises: LoadError if it cannot be asked."""
    try:
        entries = HfApi().list_repo_tree(spec.source, recursive=True, revision=folder.name)
        files = [entry for entry in entries if isinstance(entry, RepoFile) and (folder / entry.path).is_file()]
    except (OfflineModeIsEnabled, _HTTP_ERROR, OSError, ValueError) as exc:
        raise LoadError(f"model {spec.name}: the hub cannot be asked for checksums, so nothing was compared.") from exc
    return {file.path: file.blob_id if file.lfs is None else file.lfs.sha256 for file in files}


def _compare(spec: ModelSpec, folder: Path, expected: Mapping[str, str]) -> None:
    """Delete what has another checksum. Args: folder: in the cache. Raises: LoadError that names those files."""
    wrong = [name for name, checksum in expected.items() if _digest(folder / name, checksum) != checksum]
    for name in wrong:
        for file in ((folder / name).resolve(), folder / name):
            file.unlink(missing_ok=True)
    _unseen(folder).unlink(missing_ok=True)
    if wrong:
        raise LoadError(
            f"model {spec.name}: {', '.join(wrong)} arrived with another checksum than the hub's, and was deleted; "
            f"run `fluxserve pull {spec.source}` again."
        )


def _digest(file: Path, like: str) -> str:
    """A checksum of the same kind: the hub has the SHA-256 of large files, of others what git calls them."""
    with file.open("rb") as stream:
        if len(like) == _SHA256:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        content = stream.read()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _noted(file: Path) -> str | None:
    """The hub's checksum as its client noted it: the name of a cache's blob, or in what it keeps beside plain files."""
    blob = file.resolve()
    if blob.parent.name == "blobs" and _CHECKSUM.fullmatch(blob.name):
        return blob.name
    for root in (file.parent, file.parent.parent):
        note = root / _NOTES / f"{file.relative_to(root).as_posix()}.metadata"
        with suppress(OSError):
            lines = note.read_text().splitlines()
            if len(lines) > 1 and _CHECKSUM.fullmatch(lines[1]):
                return lines[1]
    return None


def _unseen(folder: Path) -> Path:
    """Names of what is being fetched and was not compared, a line each: it outlives a process that ends meanwhile.

    Args: folder: a snapshot in the cache. It lies beside the snapshots, where the hub's client looks for nothing.
    """
    return folder.parent.parent / f".fluxserve-{folder.name}"


def _clear_leftovers(folder: Path) -> None:
    """Delete what processes that were killed left of files that are whole now: the client never comes back to it."""
    for part in (folder.parent.parent / "blobs").glob("*.incomplete"):
        if part.with_name(part.name.partition(".")[0]).exists():
            part.unlink(missing_ok=True)


def adopt(spec: ModelSpec, folder: Path) -> Path:
    """Copy a checkpoint that was fetched elsewhere into the Hugging Face cache, as what its repository has.

    Compared is what the hub's client noted checksums of; of the rest no more than names, sizes and headers can tell.
    Args: folder: in diffusers' layout. Returns: its folder in the cache. Raises: LoadError.
    """
    parts = parts_of(read_object(index_in(folder)))
    names = {file.name: file for file in folder.iterdir() if file.is_file()}
    # Part by part: one may be a link, which a walk would pass over.
    files = ((part, file) for part in parts for file in part_in(folder, part).glob("*"))
    names |= {f"{part}/{file.name}": file for part, file in files if file.is_file()}
    chosen = needed(names, parts)
    facts = [f"{name} {names[name].stat().st_size}" for name in chosen if name in names]
    commit = hashlib.sha1("\n".join(facts).encode(), usedforsecurity=False).hexdigest()
    repo = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=spec.source, repo_type="model")
    whole, unfinished = repo / "snapshots" / commit, repo / "snapshots" / f"{commit}.part"
    try:
        for name in chosen if not whole.exists() else ():
            if name in names:
                (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(names[name], unfinished / name)
                _check_copy(spec, names[name], unfinished / name)
        if not whole.exists():
            first_look(replace(spec, source=str(unfinished)))  # a copy of what changed meanwhile, or of half a file
            unfinished.rename(whole)
        (repo / "refs").mkdir(parents=True, exist_ok=True)
        (repo / "refs" / (spec.revision or constants.DEFAULT_REVISION)).write_text(commit)
    except OSError as exc:
        raise LoadError(f"model {spec.name}: {folder} cannot be copied ({exc.strerror or exc}).") from exc
    return whole


def _check_copy(spec: ModelSpec, original: Path, copy: Path) -> None:
    """Compare a copy with the hub's checksum, if the client that fetched the original noted it. Raises: LoadError."""
    checksum = _noted(original)
    if checksum is not None and _digest(copy, checksum) != checksum:
        copy.unlink()
        raise LoadError(
            f"model {spec.name}: {original} has another checksum than the hub's, as was noted when it was fetched; "
            "fetch it again, then copy it."
        )


def _fetched(spec: ModelSpec) -> Path:
    """First what is small, then the weights that serving reads; without a hub to ask, what the cache has."""
    is_bare = spec.variant in _BARE
    few = small(()) if is_bare else small(None)
    stays = not spec.fetches
    folder = Path(snapshot_download(spec.source, revision=spec.revision, allow_patterns=few, local_files_only=stays))
    if stays:
        return folder
    try:
        names = HfApi().list_repo_files(spec.source, revision=folder.name)
    except (OfflineModeIsEnabled, _HTTP_ERROR):
        return folder
    parts = parts_of(read_object(index_in(folder)))
    chosen = [
        name
        for name in needed(names, parts)
        if not (name.partition("/")[0] == spec.replaced and name.endswith(".safetensors"))
    ]
    missing = {name for name in chosen if name in names and not (folder / name).exists()}
    if missing:
        # The first call may have fetched what is small.
        unseen = missing | {name for name in chosen if not name.endswith(".safetensors")}
        unseen |= set(_unseen(folder).read_text().splitlines()) if _unseen(folder).exists() else set()
        _unseen(folder).write_text("\n".join(sorted(unseen)))
    return Path(snapshot_download(spec.source, revision=folder.name, allow_patterns=chosen))
