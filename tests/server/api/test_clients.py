"""The lines that point each client at a server."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from server.api import clients
from server.api.clients import OPEN_KEY, ServerAddress

HERE = ServerAddress("http://127.0.0.1:8000", "https://127.0.0.1:8443", Path("/data dir/ca-bundle.pem"), OPEN_KEY)


@pytest.mark.parametrize(
    "client",
    [
        "python",
        "python-proxy",
        "fal-apps",
        "litellm",
        "openai",
        "node-proxy",
        "huggingface",
        "open-webui",
        "comfyui-fal",
    ],
)
def test_a_shell_takes_the_lines_as_they_are(client: str) -> None:
    setup = clients.CLIENTS[client](HERE)
    script = "\n".join([*setup.lines, "env -0"])
    out = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}).stdout
    seen = dict(entry.split("=", 1) for entry in out.split("\0") if entry)
    assert seen.items() >= setup.values.items()


def test_python_needs_exactly_these() -> None:
    assert clients.python(HERE).values == {
        "FAL_RUN_HOST": "127.0.0.1:8443/run",
        "FAL_QUEUE_RUN_HOST": "127.0.0.1:8443/queue",
        "FAL_KEY": OPEN_KEY,
        "SSL_CERT_FILE": "/data dir/ca-bundle.pem",
        "REQUESTS_CA_BUNDLE": "/data dir/ca-bundle.pem",
    }


def test_a_public_certificate_needs_no_file_and_prefixes_stay() -> None:
    reach = ServerAddress("https://fal.example.com/gpu", "https://fal.example.com/gpu", None, "id:secret")
    values = clients.fal_apps(reach).values
    assert "SSL_CERT_FILE" not in values
    assert values["FAL_QUEUE_RUN_HOST"] == "fal.example.com/gpu/queue"
    assert values["FAL_REST_HOST"] == "fal.example.com/gpu/rest"


def test_python_without_tls_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(clients.ClientSetupError, match="--tls-port"):
        clients.python(ServerAddress("http://127.0.0.1:8000", None, None, OPEN_KEY))


def test_the_proxy_is_the_plain_port_and_nothing_left_in_the_shell_beats_it() -> None:
    setup = clients.python_proxy(HERE)
    names = ("HTTPS_PROXY", "https_proxy", "NO_PROXY")
    assert [setup.values[name] for name in names] == [HERE.url, HERE.url, "localhost,127.0.0.1,::1"]
    script = "\n".join([*setup.lines, 'echo "${FAL_RUN_HOST-none} $https_proxy"'])
    shell = {"PATH": "/usr/bin:/bin", "FAL_RUN_HOST": "127.0.0.1:1/run", "https_proxy": "http://corp:3128"}
    out = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, env=shell).stdout
    assert out == f"none {HERE.url}\n"


@pytest.mark.parametrize("url", ["https://fal.example.com", "http://fal.example.com/gpu"])
def test_a_reverse_proxy_passes_no_connect_and_the_setup_says_so(url: str) -> None:
    with pytest.raises(clients.ClientSetupError, match="HTTPS_PROXY"):
        clients.python_proxy(ServerAddress(url, "https://fal.example.com", None, OPEN_KEY))


@pytest.mark.parametrize("client", ["node-proxy", "huggingface", "comfyui-fal"])
def test_what_needs_the_proxy_needs_our_plain_port_and_tls(client: str) -> None:
    for reach in (
        ServerAddress("https://fal.example.com", "https://fal.example.com", None, OPEN_KEY),
        ServerAddress("http://127.0.0.1:8000", None, None, OPEN_KEY),
    ):
        with pytest.raises(clients.ClientSetupError, match="tls-port"):
            clients.CLIENTS[client](reach)


def test_the_hosts_file_gets_every_name_of_fal() -> None:
    setup = clients.hosts(HERE)
    assert {line.split()[1] for line in setup.lines} >= {"fal.run", "queue.fal.run", "api.fal.ai", "v3.fal.media"}
    assert {line.split()[0] for line in setup.lines} == {"127.0.0.1"}
    assert any("443" in note for note in setup.notes)


def test_the_upload_leak_is_named() -> None:
    assert any("rest.fal.ai" in note for note in clients.python(HERE).notes)
    assert any("Node" in note for note in clients.javascript(HERE).notes)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
@pytest.mark.parametrize("client", ["js", "browser"])
def test_the_javascript_line_is_the_data(client: str) -> None:
    setup = clients.CLIENTS[client](HERE)
    script = "const fal = { config: (value) => console.log(JSON.stringify(value)) };" + setup.lines[-1]
    out = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True).stdout
    assert json.loads(out) == setup.values


FAKE_FAL = "let seen; const fal = { config: (given) => { seen = given } };"


def evaluated(given: str, lines: tuple[str, ...], then: str) -> Any:
    """Run JavaScript lines, without their imports, between two pieces of code; what the second returns."""
    setup = "\n".join(line for line in lines if not line.startswith("import "))
    ending = f"(async () => {{ {then} }})().then((value) => console.log(JSON.stringify(value)))"
    done = subprocess.run(["node", "-e", f"{given}\n{setup};\n{ending}"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
@pytest.mark.parametrize("client", ["js-middleware", "js-serverless", "server-proxy"])
def test_no_address_passes_the_middleware_to_the_outside(client: str) -> None:
    moved = {
        "https://fal.run/fal-ai/flux/dev/stream?a=1": "/run/fal-ai/flux/dev/stream?a=1",
        "https://queue.fal.run/fal-ai/flux/requests/1/status": "/queue/fal-ai/flux/requests/1/status",
        "https://rest.alpha.fal.ai/tokens/": "/rest/tokens/",
        "https://rest.fal.ai/storage/upload/initiate": "/rest/storage/upload/initiate",
        "https://somewhere.fal.ai/else": "/run/else",
    }
    requests = json.dumps([{"url": url, "method": "PUT"} for url in moved])
    answers = evaluated(
        FAKE_FAL,
        clients.CLIENTS[client](HERE).lines,
        f"return Promise.all({requests}.map(seen.requestMiddleware))",
    )
    assert [answer["url"] for answer in answers] == [HERE.url + path for path in moved.values()]
    assert {answer["method"] for answer in answers} == {"PUT"}


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_the_lines_for_a_sites_proxy_and_for_the_ai_sdk_are_the_data() -> None:
    proxy, sdk = clients.server_proxy(HERE), clients.ai_sdk(HERE)
    allowed = evaluated(FAKE_FAL, proxy.lines, "return proxyConfig.allowedUrlPatterns")
    assert allowed == proxy.values["allowedUrlPatterns"] == ["127.0.0.1:8000/**"]
    assert evaluated("const createFal = (given) => given", sdk.lines, "return fal") == sdk.values


def test_a_key_reaches_every_client_quoted() -> None:
    reach = ServerAddress(HERE.url, HERE.tls_url, HERE.ca_bundle, "it's:secret")
    assert clients.javascript(reach).values["credentials"] == "it's:secret"
    line = clients.curl(reach).lines[0].removeprefix("curl ")
    out = subprocess.run(["sh", "-c", f'printf "%s\\n" {line}'], capture_output=True, text=True, check=True).stdout
    assert "Authorization: Key it's:secret" in out.splitlines()
    assert json.loads(out.splitlines()[-1]) == {"prompt": clients.PROMPT}
