"""Checkpoints that requests may have loaded: known from the start, read when one is first asked for. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from models.arguments import resolve_all
from models.errors import LoadError
from models.files.folder import INDEXES
from models.first_look import first_look
from models.registry import REGISTRY, ModelSpec

HERE = "here"
"""Stands for every checkpoint of the registry whose files are on this machine."""


def spelled_out(arguments: Sequence[str], served: Sequence[ModelSpec]) -> tuple[str, ...]:
    """What `--models-on-demand` means now, for `resolve`: with names in the place of `here`.

    Args: served: the checkpoints of `--model`, which are loaded in any case.
    """
    names = [spec.name for spec in REGISTRY.values() if _is_whole(spec)] if HERE in arguments else []
    taken = {spec.name for spec in served}
    return tuple(dict.fromkeys([*(each for each in arguments if each != HERE), *(n for n in names if n not in taken)]))


def offered(
    models: Sequence[str], on_demand: Sequence[str], folders: Sequence[Path] = (), fetches: bool = False
) -> tuple[ModelSpec, ...]:
    """The checkpoints that a request may have loaded.

    Args: models, folders: as given to `resolve_all`. on_demand: spelled out. fetches: whether a request may have
        files downloaded.
    Raises: UnknownModelError.
    """
    served = set(resolve_all(models, folders))
    every = resolve_all((*models, *on_demand), folders)
    return tuple(replace(spec, fetches=fetches) for spec in every if spec not in served)


def check_offers(specs: Sequence[ModelSpec]) -> None:
    """Raises: LoadError for one that no request could load, as far as a look at names and headers tells."""
    for spec in specs:
        if is_here(spec) is False and not spec.fetches and not Path(spec.source).is_absolute():
            raise LoadError(
                f"model {spec.name} is not on this machine: run `fluxserve pull {spec.source}` first, or add "
                "--fetch-on-demand to let a request download it"
            )
        first_look(spec)


def is_here(spec: ModelSpec) -> bool | None:
    """Whether the weights are on this machine (folder, or Hugging Face cache); None when they are made on the fly."""
    if spec.source.startswith("random:") or spec.is_fake:
        return None
    return (cached_folder(spec) or Path(spec.source)).exists()


def cached_folder(spec: ModelSpec) -> Path | None:
    """Where the Hugging Face cache holds it."""
    if Path(spec.source).is_absolute():
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    wanted = INDEXES if spec.draws or spec.variant == "redux" else ("config.json",)
    try:
        found = [try_to_load_from_cache(spec.source, name, revision=spec.revision) for name in wanted]
    except HFValidationError:  # no id that a hub could have
        return None
    return next((Path(file).parent for file in found if isinstance(file, str)), None)


def _is_whole(spec: ModelSpec) -> bool:
    """Whether the Hugging Face cache has all of a checkpoint; one whose download broke off is passed over."""
    if spec.is_embedded or (folder := cached_folder(spec)) is None:
        return False
    try:
        first_look(replace(spec, source=str(folder)))
    except LoadError:
        return False
    return True
