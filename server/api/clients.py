"""How each fal client is pointed at this server: the exact lines that `fluxserve env` prints.

No client has one "base URL" setting; what each offers instead was read in its source (docs/configuration.md).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from server.http.names import FAL_HOSTS

OPEN_KEY = "local:open"
"""The Python clients refuse to start without some key; an open server ignores it."""

UNKNOWN_KEY = "YOUR_KEY"
"""Stands where a key belongs that only its owner knows."""

PROMPT = "a red circle on a blue background"
_IMPORT_FAL = 'import { fal } from "@fal-ai/client"'


NODE_CHECK = (
    'node -e \'fetch("https://fal.run/livez").then(r => r.json())'
    '.then(a => console.log(a.status === "ok" ? "here" : "NOT HERE"), () => console.log("NOT HERE"))\''
)
"""Asks fal.run without a key for what only this server has."""


class ClientSetupError(Exception):
    """This client cannot be pointed at this server; the message says what to change."""


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """How clients reach one server.

    Args: url: plain HTTP; tls_url: https, or None when TLS is off. ca_bundle: public authorities and ours;
        None when the certificate is publicly trusted. key: what to send.
    """

    url: str
    tls_url: str | None
    ca_bundle: Path | None
    key: str


@dataclass(frozen=True, slots=True)
class Setup:
    """What one client needs.

    Args: lines: to copy or to eval. values: the same as data. notes: what would still reach fal, and limits.
    """

    title: str
    lines: tuple[str, ...]
    values: dict[str, Any]
    notes: tuple[str, ...] = ()


def python(reach: ServerAddress) -> Setup:
    """The `fal_client` package, sync and async."""
    return _shell_setup(
        "Python, fal_client",
        _python_hosts(reach),
        (
            "fal_client.upload_*() and realtime() with a token still call rest.fal.ai and v3.fal.media:",
            "your key and files would go to fal. Use fal_client.encode_file(), and realtime(use_jwt=False),",
            "or --client python-proxy, which brings those calls here as well.",
            "This moves fal_client alone. falgen, genvoy, nazca and huggingface_hub have fal's addresses in their code",
            "and would send key and prompt to fal: for those, --client python-proxy or --client hosts.",
        ),
    )


def python_proxy(reach: ServerAddress) -> Setup:
    """`fal_client` with its fixed hosts brought here too, by CONNECT at the plain port: uploads, realtime tokens."""
    _python_base(reach)
    values = _proxy_variables(reach)
    values |= {"FAL_KEY": reach.key} | _python_authorities(reach)
    setup = _shell_setup(
        "Python, fal_client with uploads and realtime tokens, by proxy",
        values,
        (
            "For one program, not for a whole shell: all https of the process is led here, and the proxy",
            "refuses every name that is not fal's. It moves what heeds HTTPS_PROXY (httpx, requests, urllib), so",
            "falgen, genvoy and huggingface_hub, too; aiohttp does not, and goes to fal: for that, --client hosts.",
        ),
    )
    return replace(setup, lines=("unset FAL_RUN_HOST FAL_QUEUE_RUN_HOST", *setup.lines))


def node_proxy(reach: ServerAddress) -> Setup:
    """Node itself led here by CONNECT: no line of the program changes, and `fal.realtime` comes along."""
    values = {"NODE_USE_ENV_PROXY": "1"} | _proxy_variables(reach)
    values |= {"NODE_EXTRA_CA_CERTS": str(reach.ca_bundle)} if reach.ca_bundle else {}
    return _shell_setup(
        "any program on Node 24, or 22.21 and later (Next.js sites, too), realtime included, by proxy",
        values | {"FAL_KEY": reach.key},
        (
            "Node 20 ignores these without a word and goes to fal with key and prompt. Check in the same shell first;",
            f"it must say: here. {NODE_CHECK}",
            "For one program: all https of the process is led here, and names that are not fal's are refused.",
        ),
    )


def hosts(reach: ServerAddress) -> Setup:
    """fal's names in the hosts file: for clients that have nothing to configure."""
    parts = urlsplit(reach.tls_url or "")
    if reach.tls_url is None or parts.path.strip("/"):
        raise ClientSetupError("fal's names are answered by https without a path: serve with a --tls-port")
    address = "127.0.0.1" if parts.hostname in (None, "localhost") else parts.hostname
    bundle = str(reach.ca_bundle) if reach.ca_bundle else None
    trust = () if bundle is None else (f"Trust: SSL_CERT_FILE, REQUESTS_CA_BUNDLE or NODE_EXTRA_CA_CERTS={bundle}.",)
    option = "" if bundle is None else f"--cacert {shlex.quote(bundle)} "
    return Setup(
        "any client at all: these lines in /etc/hosts, or the same in a name server of your own",
        tuple(f"{address} {name}" for name in FAL_HOSTS),
        {"address": address, "names": list(FAL_HOSTS), "ca_bundle": bundle, "key": reach.key},
        (
            f"Clients ask port 443: serve with --tls-port 443, or forward it to {parts.port or 443}.",
            *trust,
            f"Check first; it must say ok: curl -s {option}https://fal.run/livez",
            "Every program of the machine that names fal comes here: use a container for one alone.",
        ),
    )


def huggingface(reach: ServerAddress) -> Setup:
    """Hugging Face's clients with the provider fal-ai: the hub's answer about a model comes from here, too."""
    values = _proxy_variables(reach) | {"HF_ENDPOINT": reach.url, "FAL_KEY": reach.key}
    return _shell_setup(
        'huggingface_hub: InferenceClient(provider="fal-ai", api_key=os.environ["FAL_KEY"])',
        values | _python_authorities(reach),
        (
            "Without the proxy the prompt goes to fal.run, HF_ENDPOINT or not. A key that begins hf_ is for Hugging",
            "Face's router, which the proxy refuses. For one program: models are not downloaded with these set.",
            "@huggingface/inference asks huggingface.co by a fixed address: give its calls a `fetch` that comes here.",
        ),
    )


def open_webui(reach: ServerAddress) -> Setup:
    """Open WebUI's pictures, by OpenAI's API."""
    return _shell_setup(
        "Open WebUI, pictures",
        {
            "ENABLE_IMAGE_GENERATION": "true",
            "IMAGE_GENERATION_ENGINE": "openai",
            "IMAGE_GENERATION_MODEL": "fal-ai/flux/dev",
            "IMAGE_SIZE": "1024x1024",
            "IMAGES_OPENAI_API_BASE_URL": f"{reach.url}/v1",
            "IMAGES_OPENAI_API_KEY": reach.key,
        },
        ("What its settings page has stored wins over these. In a container, 127.0.0.1 is the container itself.",),
    )


def comfyui_fal(reach: ServerAddress) -> Setup:
    """The ComfyUI-fal-API nodes: fal_client inside ComfyUI, and `requests` for the pictures."""
    setup = python_proxy(reach)
    notes = (
        "For the shell that starts ComfyUI; its own downloads by https are refused while these are set.",
        "In the node's config.ini leave FAL_KEY out, or write the key of this server.",
    )
    return replace(setup, title="ComfyUI-fal-API", notes=notes)


def fal_apps(reach: ServerAddress) -> Setup:
    """`fal.apps` and the file toolkit of the `fal` package."""
    base = _python_base(reach)
    values = _python_hosts(reach) | {"FAL_WS_RUN_HOST": f"{base}/ws", "FAL_REST_HOST": f"{base}/rest"}
    return _shell_setup("Python, fal.apps (the `fal` package)", values)


def javascript(reach: ServerAddress) -> Setup:
    """`@fal-ai/client` 1.10 and later in Node."""
    values = {"credentials": reach.key, "proxyUrl": {"url": proxy_url(reach), "when": "always"}}
    return Setup(
        title="JavaScript in Node, @fal-ai/client 1.10 or later",
        lines=(_IMPORT_FAL, f"fal.config({_js(values)})"),
        values=values,
        notes=(
            "proxyUrl as a plain string does nothing in Node: requests, with your key, would go to fal.",
            "fal.realtime opens wss://fal.run whatever the settings.",
        ),
    )


def js_middleware(reach: ServerAddress) -> Setup:
    """`@fal-ai/client` of any version, in Node or a page: its hosts become prefixes of our address."""
    return _middleware_setup(reach, "JavaScript, @fal-ai/client 1.0 or later", _IMPORT_FAL)


def js_serverless(reach: ServerAddress) -> Setup:
    """The retired `@fal-ai/serverless-client`."""
    return _middleware_setup(
        reach,
        "JavaScript, the retired @fal-ai/serverless-client 0.15",
        'import * as fal from "@fal-ai/serverless-client"',
    )


def server_proxy(reach: ServerAddress) -> Setup:
    """A site that keeps `@fal-ai/server-proxy` between its pages and this server."""
    patterns = [f"{urlsplit(reach.url).netloc}/**"]
    page = f'{{ proxyUrl: "/api/fal/proxy", requestMiddleware: {_middleware(reach)} }}'
    return Setup(
        title="a site's own @fal-ai/server-proxy in front; FAL_KEY stays in the site's environment",
        lines=(
            f"const proxyConfig = {_js({'allowedUrlPatterns': patterns})}",
            "// the argument of createRouteHandler, createHandler, ...; and in the pages:",
            _IMPORT_FAL,
            f"fal.config({page})",
        ),
        values={"FAL_KEY": reach.key, "allowedUrlPatterns": patterns, "url": reach.url},
        notes=(
            "Without both lines the package sends FAL_KEY and the prompts to fal.",
            "Uploads go from the page to this server directly; fal.realtime opens fal's own hosts.",
        ),
    )


def ai_sdk(reach: ServerAddress) -> Setup:
    """The fal provider of Vercel's AI SDK."""
    values = {"apiKey": reach.key, "baseURL": f"{reach.url}/run"}
    return Setup(
        title="JavaScript, @ai-sdk/fal: generateImage({ model: fal.image(...) })",
        lines=('import { createFal } from "@ai-sdk/fal"', f"const fal = createFal({_js(values)})"),
        values=values,
        notes=("Its speech, transcription and video models call fal.run and queue.fal.run whatever baseURL says.",),
    )


def browser(reach: ServerAddress) -> Setup:
    """`@fal-ai/client` in a page."""
    values: dict[str, Any] = {"proxyUrl": proxy_url(reach)}
    if reach.key != OPEN_KEY:
        values = {"credentials": reach.key} | values
    return Setup(
        title="JavaScript in a browser, @fal-ai/client",
        lines=(_IMPORT_FAL, f"fal.config({_js(values)})"),
        values=values,
        notes=('fal.realtime and connectionMode: "client" open fal\'s own hosts whatever the settings.',),
    )


def curl(reach: ServerAddress) -> Setup:
    """curl, or anything that takes a URL."""
    address = f"{reach.url}/run/fal-ai/flux-pro"
    key = "" if reach.key == OPEN_KEY else f" -H {shlex.quote(f'Authorization: Key {reach.key}')}"
    body = shlex.quote(json.dumps({"prompt": PROMPT}))
    line = f"curl -s {shlex.quote(address)}{key} -H 'Content-Type: application/json' -d {body}"
    return Setup("curl (the queue is /queue instead of /run)", (line,), {"url": reach.url, "key": reach.key})


def openai(reach: ServerAddress) -> Setup:
    """The openai package and tools that read its environment, for POST /v1/images/generations."""
    values = {"OPENAI_BASE_URL": f"{reach.url}/v1", "OPENAI_API_KEY": reach.key}
    return _shell_setup("openai client, Open WebUI and the like (pictures only)", values)


def litellm(reach: ServerAddress) -> Setup:
    """LiteLLM's fal provider: `litellm.image_generation(model="fal_ai/fal-ai/flux/dev", ...)`."""
    values = {"FAL_AI_API_BASE": f"{reach.url}/run", "FAL_AI_API_KEY": reach.key}
    # Without this, importing it fetches a price list from the internet.
    values["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    return _shell_setup("LiteLLM, models fal_ai/...", values)


CLIENTS: dict[str, Callable[[ServerAddress], Setup]] = {
    "python": python,
    "python-proxy": python_proxy,
    "fal-apps": fal_apps,
    "js": javascript,
    "js-middleware": js_middleware,
    "js-serverless": js_serverless,
    "browser": browser,
    "server-proxy": server_proxy,
    "curl": curl,
    "node-proxy": node_proxy,
    "hosts": hosts,
    "huggingface": huggingface,
    "open-webui": open_webui,
    "comfyui-fal": comfyui_fal,
    "ai-sdk": ai_sdk,
    "litellm": litellm,
    "openai": openai,
}
"""What `--client` takes."""


def proxy_url(reach: ServerAddress) -> str:
    """The address of the proxy endpoint that the JavaScript client sends everything to."""
    return f"{reach.url}/api/fal/proxy"


def _proxy_variables(reach: ServerAddress) -> dict[str, str]:
    """What leads https here, for programs that heed it."""
    parts = urlsplit(reach.url)
    if reach.tls_url is None or parts.scheme != "http" or parts.path.strip("/"):
        raise ClientSetupError(
            "HTTPS_PROXY must name the plain port of the server itself, which --public-url hides, and needs its "
            "--tls-port: export HTTPS_PROXY=http://HOST:PORT of the machine that serves"
        )
    # In both spellings, as programs disagree on which one wins; and a NO_PROXY left over must not except fal's names.
    values = dict.fromkeys(("HTTPS_PROXY", "https_proxy"), reach.url)
    return values | dict.fromkeys(("NO_PROXY", "no_proxy"), "localhost,127.0.0.1,::1")


def _middleware(reach: ServerAddress) -> str:
    """A `requestMiddleware` that makes fal's hosts prefixes here: queue.* and rest.* by name, all others run.

    Nothing that passes it can reach fal: a host that it does not know becomes a path of ours as well."""
    areas = r"/^https:\/\/(?:(queue|rest)\.)?[^/]+/"
    place = f'(_, area) => {json.dumps(reach.url + "/")} + (area ?? "run")'
    return f"async (r) => ({{ ...r, url: r.url.replace({areas}, {place}) }})"


def _middleware_setup(reach: ServerAddress, title: str, first_line: str) -> Setup:
    config = f"{{ credentials: {json.dumps(reach.key)}, requestMiddleware: {_middleware(reach)} }}"
    return Setup(
        title=title,
        lines=(first_line, f"fal.config({config})"),
        values={"credentials": reach.key, "url": reach.url},
        notes=('fal.realtime and connectionMode: "client" open fal\'s own hosts whatever the settings.',),
    )


def _python_base(reach: ServerAddress) -> str:
    """Host, port and path prefix, as the Python clients paste them after https://."""
    if reach.tls_url is None:
        raise ClientSetupError(
            "the Python clients speak only https: serve with a --tls-port, and make a --public-url, if any, https"
        )
    parts = urlsplit(reach.tls_url)
    return parts.netloc + parts.path.rstrip("/")


def _python_hosts(reach: ServerAddress) -> dict[str, str]:
    base = _python_base(reach)
    values = {"FAL_RUN_HOST": f"{base}/run", "FAL_QUEUE_RUN_HOST": f"{base}/queue", "FAL_KEY": reach.key}
    return values | _python_authorities(reach)


def _python_authorities(reach: ServerAddress) -> dict[str, str]:
    """Where Python's HTTP libraries look: httpx and the standard library, and `requests`, which asks for its own."""
    return dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), str(reach.ca_bundle)) if reach.ca_bundle else {}


def _shell_setup(title: str, values: dict[str, str], notes: tuple[str, ...] = ()) -> Setup:
    lines = tuple(f"export {name}={shlex.quote(value)}" for name, value in values.items())
    return Setup(title, lines, dict(values), notes)


def _js(value: Any) -> str:
    """A value as a JavaScript literal with bare keys, as people write it."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name}: {_js(item)}" for name, item in value.items()) + " }"
    return json.dumps(value)
