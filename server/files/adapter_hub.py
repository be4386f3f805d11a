"""A LoRA of a Hugging Face repository, through the hub's own client and cache; HF_HUB_OFFLINE, HF_TOKEN and HF_HOME
are honoured."""

from __future__ import annotations

from pathlib import Path

from models.adapter_files import shown

_USUAL = "pytorch_lora_weights.safetensors"


class HubError(Exception):
    """The hub does not give it; the message is what follows "could not be downloaded: "."""


def file_of(name: str, max_bytes: int) -> Path:
    """The local file of `owner/repo` or `owner/repo/file`, fetched if it is not in the cache. Waits on the network.

    Raises: HubError; OSError if the disk refuses.
    """
    # The client takes half a second to import; a server without hub names never pays for it.
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    owner, repo, *rest = name.split("/", 2)
    repo_id = f"{owner}/{repo}"
    try:
        if constants.HF_HUB_OFFLINE:
            return _cached(repo_id, rest[0] if rest else None)
        return Path(hf_hub_download(repo_id, _chosen(repo_id, rest[0] if rest else None, max_bytes)))
    except LocalEntryNotFoundError as exc:
        raise HubError(f"{shown(repo_id)} is not in this server's cache, and the hub cannot be reached") from exc
    except (HfHubHTTPError, HFValidationError) as exc:
        raise HubError(f"the hub has no {shown(name)} that this server may see") from exc


def _cached(repo_id: str, file: str | None) -> Path:
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(repo_id, local_files_only=True))
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*.safetensors")}
    return found[_pick(repo_id, file, list(found))]


def _chosen(repo_id: str, file: str | None, max_bytes: int) -> str:
    """The name of the file to fetch, once its size is known to be small enough."""
    from huggingface_hub import HfApi

    listed = HfApi().model_info(repo_id, files_metadata=True, timeout=15).siblings or []
    sizes = {entry.rfilename: entry.size or 0 for entry in listed if entry.rfilename.endswith(".safetensors")}
    name = _pick(repo_id, file, list(sizes))
    if sizes[name] > max_bytes:
        raise HubError(f"{shown(name)} has {sizes[name] >> 20} MiB, and this server takes {max_bytes >> 20}")
    return name


def _pick(repo_id: str, file: str | None, names: list[str]) -> str:
    """The file that was asked for, or the one that is meant."""
    if file is not None:
        found = next((name for name in names if name in (file, f"{file}.safetensors")), None)
        if found is None:
            raise HubError(f"{shown(repo_id)} has no safetensors file {shown(file)}")
        return found
    if _USUAL in names:
        return _USUAL
    at_top = [name for name in names if "/" not in name]
    if len(at_top) != 1:
        raise HubError(f"{shown(repo_id)} has {len(at_top)} safetensors files; name one as {shown(repo_id)}/FILE")
    return at_top[0]
