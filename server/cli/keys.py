"""`fluxserve keys`: make API keys."""

from __future__ import annotations

import secrets
import uuid

import typer

from server.cli.options import Json

app = typer.Typer(no_args_is_help=True, help="Make API keys.")


@app.callback()
def _keys() -> None:
    """Make API keys."""


@app.command("new")
def new(as_json: Json = False) -> None:
    """Print a fresh key in fal's form (id:secret), 128 random bits in the secret.

    Nothing is stored: hand it to `fluxserve serve --api-key` (or FLUXSERVE_API_KEYS) and to the client as FAL_KEY.
    """
    key = f"{uuid.uuid4()}:{secrets.token_hex(16)}"
    print(f'{{"key": "{key}"}}' if as_json else key)
