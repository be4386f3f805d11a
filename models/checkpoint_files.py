"""Where a checkpoint's files are, fetched if they have to be: no torch, no pickle."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from models.errors import LoadError
from models.registry import ModelSpec

WANTED = (
    "model_index.json",
    "*/*.json",
    "*/*.safetensors",
    "*/*.txt",
    "*/*.model",
    "*/*.jinja",
)
"""Configs, tokenizers with their chat templates, and safetensors of the parts; never the single-file copy beside them,
never pickles."""

_ROOT = ("config.json", "preprocessor_config.json", "diffusion_pytorch_model.safetensors", "model.safetensors")
"""Of checkpoints that are one model in no folder of its own."""


def locate(spec: ModelSpec, without: str | None = None) -> Path:
    """The local folder of a checkpoint, fetched into the Hugging Face cache if it has to be.

    Args: without: a part whose weights are not wanted.
    Honours HF_HOME, HF_TOKEN and HF_HUB_OFFLINE. Raises: LoadError.
    """
    folder = Path(spec.source)
    if folder.is_dir():
        return folder
    if folder.is_absolute():
        raise LoadError(f"model {spec.name}: the folder {spec.source} does not exist.")
    wanted = [*WANTED, *(_ROOT if spec.variant in ("controlnet", "depth-estimator") else ())]
    ignored = [f"{without}/*.safetensors"] if without else None
    try:
        return Path(
            snapshot_download(spec.source, revision=spec.revision, allow_patterns=wanted, ignore_patterns=ignored)
        )
    except GatedRepoError as exc:
        raise LoadError(
            f"model {spec.name}: {spec.source} is gated; accept its licence at https://huggingface.co/{spec.source} "
            "and set HF_TOKEN to a token of that account."
        ) from exc
    except (RepositoryNotFoundError, RevisionNotFoundError) as exc:
        raise LoadError(
            f"model {spec.name}: Hugging Face has no repository {spec.source}"
            f"{f' at {spec.revision}' if spec.revision else ''} that this token may see; check the name, or HF_TOKEN."
        ) from exc
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as exc:
        raise LoadError(
            f"model {spec.name}: {spec.source} is not in the local cache and could not be fetched; "
            f"run `hf download {spec.source}` where there is network, or point HF_HOME at a cache that has it."
        ) from exc
