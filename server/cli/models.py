"""`fluxserve models`: the checkpoints known by name, and which of them answers which endpoint."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from models.arguments import UnknownModelError, resolve_all
from models.helpers import helper_bytes
from models.memory import PRESETS, need, presumed_architecture
from models.offers import is_here, offered, spelled_out
from models.registry import REGISTRY, ModelSpec
from server.cli.failures import USAGE, CommandError
from server.cli.options import Json, table_console


def models(
    as_json: Json = False,
    endpoints: Annotated[
        bool, typer.Option("--endpoints", help="Which checkpoint answers which endpoint, or what is missing.")
    ] = False,
    model: Annotated[
        list[str] | None, typer.Option(help="With --endpoints: as given to serve.", show_default="flux-shapes")
    ] = None,
    models_on_demand: Annotated[list[str] | None, typer.Option(help="With --endpoints: as given to serve.")] = None,
    model_dir: Annotated[list[Path] | None, typer.Option(help="With --endpoints: as given to serve.")] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="With --endpoints: the page of the docs.")] = False,
) -> None:
    """List the models that --model knows by name; folders and Hugging Face ids work as well."""
    if endpoints:
        _endpoints(model or ["flux-shapes"], models_on_demand or [], model_dir or [], as_json, as_markdown)
        return
    if as_json:
        rows = [asdict(spec) | {"is_here": is_here(spec), "memory": memory_needs(spec)} for spec in REGISTRY.values()]
        print(json.dumps({"models": rows}))
        return
    from rich.table import Column, Table

    name = Column("name", no_wrap=True)
    table = Table(name, "here", "steps", "GPU memory", "licence", "what it is", box=None, header_style="bold")
    for spec in REGISTRY.values():
        licence = spec.licence + (" (gated)" if spec.gated else "")
        here = {True: "yes", False: "no", None: "made"}[is_here(spec)]
        table.add_row(spec.name, here, str(spec.default_steps), _memory(spec), licence, spec.summary)
    console = table_console()
    console.print(table)
    console.print("`--model fake:` pretends to draw, for the tests of what uses this server.")
    console.print("`fluxserve doctor` says which flags fit a model to the GPUs of this machine.")


def _endpoints(
    arguments: list[str], on_demand: list[str], folders: list[Path], as_json: bool, as_markdown: bool
) -> None:
    from server.api import endpoint_table
    from server.api.served import Served

    if as_markdown:
        print(endpoint_table.markdown(), end="")
        return
    try:
        specs = resolve_all(arguments, folders)
        served = Served(specs, offered(arguments, spelled_out(on_demand, specs), folders))
    except UnknownModelError as exc:
        raise CommandError(str(exc), USAGE) from exc
    rows = list(endpoint_table.rows(served))
    if as_json:
        print(json.dumps({"endpoints": [{"id": name, "answer": answer} for name, answer in rows]}))
        return
    from rich.table import Column, Table

    table = Table(Column("endpoint", no_wrap=True), "answered by", box=None, header_style="bold")
    for name, answer in rows:
        table.add_row(name, answer)
    table_console().print(table)


def memory_needs(spec: ModelSpec) -> list[dict[str, Any]]:
    """What each preset needs of a GPU for 1024 x 1024 pixels, in GB, the roomiest first.

    Of what never draws: what its weights take besides, whatever the preset; nothing if that is unknown.
    """
    if not spec.draws:
        held = helper_bytes(spec)
        only = PRESETS[0]
        return [] if held is None else [asdict(only) | {"flags": only.flags, "gb": math.ceil(held / 1e7) / 100}]
    arch = presumed_architecture(spec)
    return [
        asdict(preset) | {"flags": preset.flags, "gb": round(need(arch, preset).device / 1e9, 1)} for preset in PRESETS
    ]


def _memory(spec: ModelSpec) -> str:
    """The same in words."""
    needs = [row["gb"] for row in memory_needs(spec)]
    if not needs:
        return ""
    return f"{min(needs):.0f} to {needs[0]:.0f} GB" if spec.draws else f"+ {needs[0]:.2f} GB"
