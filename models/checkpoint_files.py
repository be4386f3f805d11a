"""Where a checkpoint's files are, fetched if they have to be: no torch, no pickle."""

from __future__ import annotations

import hashlib
import shutil
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

from models.arguments import read_object
from models.errors import LoadError
from models.files.folder import index_in, part_in
from models.files.wanted import needed, parts_of, small
from models.first_look import first_look
from models.registry import ModelSpec

_HTTP_ERROR: type[BaseException] = HfHubHTTPError.__bases__[0]
"""Of whichever HTTP library the hub's client uses."""
_BARE = ("redux", "controlnet", "depth-estimator")
"""Variants that may be one model in no folder of its own."""


def locate(spec: ModelSpec) -> Path:
    """The local folder of a checkpoint, fetched into the Hugging Face cache if it has to be.

    The weights of a part whose place a single file takes are not wanted.
    Honours HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE. Raises: LoadError.
    """
    folder = Path(spec.source)
    if folder.is_dir():
        return folder
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
    folder = locate(spec)
    if spec.variant not in _BARE and not index_in(folder).is_file():
        raise LoadError(
            f"model {spec.name}: {spec.source} has no model_index.json, so it is no checkpoint in diffusers' layout; "
            f"fetch the single file that you want (`hf download {spec.source} FILE`) and give it as --transformer FILE."
        )
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
        if not whole.exists():
            first_look(replace(spec, source=str(unfinished)))  # a copy of what changed meanwhile, or of half a file
            unfinished.rename(whole)
        (repo / "refs").mkdir(parents=True, exist_ok=True)
        (repo / "refs" / (spec.revision or constants.DEFAULT_REVISION)).write_text(commit)
    except OSError as exc:
        raise LoadError(f"model {spec.name}: {folder} cannot be copied ({exc.strerror or exc}).") from exc
    return whole


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
    return Path(snapshot_download(spec.source, revision=folder.name, allow_patterns=chosen))
