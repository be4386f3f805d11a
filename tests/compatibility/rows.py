"""The rows of the compatibility matrix: which client, in which version, set up how, and what it is made to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass(frozen=True)
class Row:
    """One client in one version.

    Args:
        name: as its package index calls it, and where it runs.
        setup: what `fluxserve env --client` calls its set-up.
        package: what is imported: an alias in js/package.json, or a folder of `make clients`; empty for none.
        operations: what it does here, in the words of its program.
        limits: operations that no set-up can bring here, and why; the test proves that they fail and leak nothing.
    """

    name: str
    version: str
    setup: str
    operations: tuple[str, ...]
    package: str = ""
    limits: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Name and version, as the table and the marker have them."""
        return f"{self.name} {self.version}".strip()


QUEUE = ("run", "subscribe", "submit, status, result")

_PYTHON = (*QUEUE, "run_async", "stream")
_PYTHON_ALL = (*_PYTHON, "upload", "realtime")

PYTHON = (
    Row("fal_client", "1.0.3", "python", (*_PYTHON, "realtime without token")),
    Row("fal_client by proxy", "1.0.3", "python-proxy", _PYTHON_ALL),
    Row("fal_client", "0.13.2", "python", _PYTHON, "fal_client-0.13.2"),
    Row("fal_client by proxy", "0.13.2", "python-proxy", _PYTHON_ALL, "fal_client-0.13.2"),
    Row("fal_client", "0.10.0", "python-proxy", _PYTHON_ALL, "fal_client-0.10.0"),
    Row(
        "fal_client, the oldest there is",
        "0.1.0",
        "python-proxy",
        ("run", "submit, status, result", "run_async", "stream", "upload"),
        "fal_client-0.1.0",
    ),
)

_JS = (*QUEUE, "subscribe by stream", "upload", "upload of an input", "stream")

JAVASCRIPT = (
    Row("@fal-ai/client", "1.10.1", "js", (*_JS, "cancel"), "fal-1.10"),
    Row("@fal-ai/client by middleware", "1.10.1", "js-middleware", (*_JS, "cancel"), "fal-1.10"),
    Row("@fal-ai/client", "1.9.6", "js-middleware", (*_JS, "cancel"), "fal-1.9"),
    Row("@fal-ai/client", "1.8.5", "js-middleware", (*_JS, "cancel"), "fal-1.8"),
    Row("@fal-ai/client", "1.6.0", "js-middleware", (*_JS, "cancel"), "fal-1.6"),
    Row("@fal-ai/client", "1.5.0", "js-middleware", (*_JS, "cancel"), "fal-1.5"),
    Row("@fal-ai/client", "1.2.3", "js-middleware", (*_JS, "cancel"), "fal-1.2"),
    Row("@fal-ai/client", "1.0.2", "js-middleware", (*_JS, "cancel"), "fal-1.0"),
    Row("@fal-ai/serverless-client", "0.15.0", "js-serverless", _JS, "@fal-ai/serverless-client"),
)


SERVER_PROXY = Row(
    "@fal-ai/server-proxy",
    "1.2.1",
    "server-proxy",
    ("run", "subscribe", "subscribe by stream", "stream", "upload", "cancel"),
    "fal-1.10",
)
BROWSER = Row(
    "@fal-ai/client in headless Chromium 143",
    "1.10.1",
    "browser",
    ("run", "subscribe", "subscribe by stream", "stream", "upload", "show a result", "a wrong field"),
    "fal-1.10",
    {"realtime": "opens wss://fal.run whatever the settings"},
)
FAL_APPS = Row(
    "fal.apps and fal.toolkit of fal",
    "1.83.0",
    "fal-apps",
    ("run", "submit, status, result", "cancel", "stream", "realtime", "ws", "upload", "upload by initiate"),
    "fal",
)
AI_SDK = Row("@ai-sdk/fal", "2.0.59", "ai-sdk", ("generateImage", "provider options", "a wrong field"), "@ai-sdk/fal")
LITELLM = Row("litellm, provider fal_ai", "1.109.1", "litellm", ("image_generation", "aimage_generation"), "litellm")
OPENAI = Row(
    "openai",
    "3.54.0",
    "openai",
    ("models.list", "images.generate", "images.generate inline", "a wrong field"),
    "openai",
)
CURL = Row("curl", "", "curl", ("run",))
COMFYUI = Row(
    "fal_client with requests 2.34.2, as in ComfyUI-fal-API",
    "1.0.3",
    "comfyui-fal",
    ("submit, get, requests.get", "requests over TLS"),
)
HUGGINGFACE = Row("huggingface_hub, provider fal-ai", "2.4.0", "huggingface", ("text_to_image",))
OPEN_WEBUI = Row("the request of Open WebUI", "", "open-webui", ("images/generations",))
NODE_PROXY = Row(
    "@fal-ai/client unconfigured, in Node 24 or 22.21 and later",
    "1.10.1",
    "node-proxy",
    (*QUEUE, "stream", "upload"),
    "fal-1.10",
)
HOSTS = Row("curl at fal's own names", "", "hosts", ("run",))
JAVA = Row("java.net.http of a JDK", "", "curl", ("run", "run again", "submit"))
OTHERS = (COMFYUI, HUGGINGFACE, OPEN_WEBUI, NODE_PROXY, HOSTS, JAVA)
EMBEDDED = (
    Row("fal_client with the embedded model", "1.0.3", "python", ("subscribe",)),
    Row("@fal-ai/client with the embedded model", "1.10.1", "js", ("subscribe",), "fal-1.10"),
    Row("curl with the embedded model", "", "curl", ("run",)),
)
OPENAI_PICTURES = Row(
    "openai with the embedded model",
    "3.54.0",
    "openai",
    ("images.edit", "images.edit inline", "images.edit in a mask", "images.create_variation", "no picture"),
    "openai",
)

ROWS = (
    *PYTHON, FAL_APPS, *JAVASCRIPT, BROWSER, SERVER_PROXY, AI_SDK, LITELLM, OPENAI, CURL, *OTHERS, *EMBEDDED,
    OPENAI_PICTURES,
)  # fmt: skip
"""All of them, in the order of the table."""


def params(rows: tuple[Row, ...], *marks: Any) -> list[Any]:
    """The rows as parameters of a test, each with its marker for the report."""
    return [pytest.param(row, id=row.title, marks=[pytest.mark.client(row), *marks]) for row in rows]
