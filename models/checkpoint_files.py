"""Where a checkpoint's files are, fetched if they have to be: no torch, no pickle."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import suppress
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

from models.arguments import read_object
from models.errors import LoadError
from models.files.wanted import INDEX, needed, parts_of, small
from models.registry import ModelSpec

_HTTP_ERROR: type[BaseException] = HfHubHTTPError.__bases__[0]
"""Of whichever HTTP library the hub's client uses."""
_BARE = ("redux", "controlnet", "depth-estimator")
"""Variants that may be one model in no folder of its own."""


def locate(spec: ModelSpec, without: str | None = None) -> Path:
    """The local folder of a checkpoint, fetched into the Hugging Face cache if it has to be.

    Args: without: a part whose weights are not wanted.
    Honours HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE. Raises: LoadError.
    """
    folder = Path(spec.source)
    if folder.is_dir():
        return folder
    if folder.is_absolute():
        raise LoadError(f"model {spec.name}: the folder {spec.source} does not exist.")
    try:
        return _fetched(spec, without)
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
    folder = locate(spec)
    try:
        seen = HfApi().verify_repo_checksums(spec.source, revision=folder.name)
    except (OfflineModeIsEnabled, _HTTP_ERROR, OSError, ValueError) as exc:
        raise LoadError(f"model {spec.name}: the hub cannot be asked for checksums, so nothing was compared.") from exc
    for wrong in seen.mismatches:
        link = folder / wrong["path"]
        for file in (link.resolve(), link):
            with suppress(FileNotFoundError):
                file.unlink()
    if seen.mismatches:
        names = ", ".join(wrong["path"] for wrong in seen.mismatches)
        raise LoadError(
            f"model {spec.name}: {names} arrived with another checksum than the hub's, and was deleted; "
            f"run `fluxserve pull {spec.source}` again."
        )
    return folder


def adopt(spec: ModelSpec, folder: Path) -> Path:
    """Copy a checkpoint that was fetched elsewhere into the Hugging Face cache, as what its repository has.

    Args: folder: in diffusers' layout. Returns: its folder in the cache. Raises: LoadError.
    """
    names = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    chosen = needed(names, parts_of(read_object(folder / INDEX)))
    facts = [f"{name} {names[name].stat().st_size}" for name in chosen if name in names]
    commit = hashlib.sha1("\n".join(facts).encode(), usedforsecurity=False).hexdigest()
    repo = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=spec.source, repo_type="model")
    whole, unfinished = repo / "snapshots" / commit, repo / "snapshots" / f"{commit}.part"
    try:
        for name in chosen if not whole.exists() else ():
            if name in names:
                (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(names[name], unfinished / name)
        if not whole.exists():
            unfinished.rename(whole)
        (repo / "refs").mkdir(parents=True, exist_ok=True)
        (repo / "refs" / (spec.revision or constants.DEFAULT_REVISION)).write_text(commit)
    except OSError as exc:
        raise LoadError(f"model {spec.name}: {folder} cannot be copied ({exc.strerror or exc}).") from exc
    return whole


def _fetched(spec: ModelSpec, without: str | None) -> Path:
    """First what is small, then the weights that serving reads; without a hub to ask, what the cache has."""
    is_bare = spec.variant in _BARE
    few = small(()) if is_bare else small(None)
    folder = Path(snapshot_download(spec.source, revision=spec.revision, allow_patterns=few))
    try:
        names = HfApi().list_repo_files(spec.source, revision=folder.name)
    except (OfflineModeIsEnabled, _HTTP_ERROR):
        return folder
    parts = parts_of(read_object(folder / INDEX))
    weights = f"{without}/" if without else None
    chosen = [
        name
        for name in needed(names, parts)
        if not (weights and name.startswith(weights) and name.endswith(".safetensors"))
    ]
    return Path(snapshot_download(spec.source, revision=folder.name, allow_patterns=chosen))
