"""`fluxserve pull`: fetch checkpoints before they are served, and compare them with the hub's checksums."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from models.arguments import UnknownModelError, resolve_all
from models.errors import LoadError
from models.first_look import first_look
from models.registry import ModelSpec
from server.cli.failures import USAGE, CommandError
from server.cli.options import Json


def pull(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="As --model takes them: `fluxserve models`.")],
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Take it from this folder, fetched elsewhere, instead of the hub.", exists=True),
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch what serving a model reads, and nothing else, into the Hugging Face cache; later serves need no network.

    HF_HOME, HF_ENDPOINT (a mirror) and HF_TOKEN count. A broken connection goes on where it broke, an interrupted pull
    keeps its whole files, and what is there already is compared with the hub's checksums again.
    """
    try:
        specs = resolve_all(names)
    except UnknownModelError as exc:
        raise CommandError(str(exc), USAGE) from exc
    if source is not None and len(specs) != 1:
        raise CommandError("--from is the folder of one model: give one NAME", USAGE)
    if as_json or not sys.stderr.isatty():
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
    rows = [_pulled(spec, source, as_json) for spec in specs]
    if as_json:
        print(json.dumps({"models": rows}))


def _pulled(spec: ModelSpec, source: Path | None, is_quiet: bool) -> dict[str, object]:
    from models.checkpoint_files import pull

    if spec.source.startswith(("random:", "fake:")) or Path(spec.source).is_absolute():
        folder, what = None, "needs no fetching"
    else:
        try:
            folder = pull(spec) if source is None else _adopted(spec, source.resolve())
        except LoadError as exc:
            raise CommandError(str(exc)) from exc
        what = f"is here, {_bytes(folder) / 1e9:.1f} GB in {folder}"
    if not is_quiet:
        print(f"{spec.name} {what}")
    return {
        "name": spec.name,
        "source": spec.source,
        "folder": None if folder is None else str(folder),
        "bytes": 0 if folder is None else _bytes(folder),
    }


def _adopted(spec: ModelSpec, source: Path) -> Path:
    from models.checkpoint_files import adopt

    first_look(replace(spec, source=str(source)))
    return adopt(spec, source)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
