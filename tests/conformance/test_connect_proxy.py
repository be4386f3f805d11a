"""Case 4, and the CONNECT proxy beyond it: what it lets pass, what it refuses, and what it bears."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.http.names import FAL_HOSTS
from tests.conformance.conftest import StartServer
from tests.conformance.recording import Record
from tests.conformance.scripted import DEV, TINY, Scripted
from tests.conformance.watched import Watched, watched_python

INPUT = {"prompt": "a fox", **TINY}
GOOD = b"CONNECT rest.fal.ai:443 HTTP/1.1\r\nHost: rest.fal.ai:443\r\n\r\n"
HOSTILE = {"https_proxy": "http://192.0.2.1:3128", "NO_PROXY": "fal.run,rest.fal.ai", "no_proxy": "*"}
"""What a company's shell may hold already; documentation addresses, where nobody lives."""


@pytest.fixture(scope="module")
def proxied(shared_server: Scripted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """`fal_client` as `fluxserve env --client python-proxy` sets it up, watched, in a shell with a proxy of its own."""
    folder = tmp_path_factory.mktemp("proxied")
    with watched_python(folder, shared_server.server.setup("python-proxy"), **HOSTILE) as client:
        yield client


@pytest.mark.case(4)
def test_004_run_and_subscribe_arrive_and_the_addresses_are_fals_own(
    server: Scripted, proxied: Watched, record: Record
) -> None:
    names = {"endpoint": DEV, "arguments": INPUT}
    assert proxied("assert not {k for k in os.environ if k.startswith('FAL_') and 'HOST' in k}") is None
    run = proxied("return fal_client.run(endpoint, arguments)", **names)
    assert len(run["images"]) == 1
    handle = proxied(
        "h = fal_client.submit(endpoint, arguments); return [h.response_url, h.status_url, h.cancel_url]", **names
    )
    assert all(url.startswith("https://queue.fal.run/fal-ai/flux/requests/") for url in handle)
    result = proxied("return await fal_client.subscribe_async(endpoint, arguments, with_logs=True)", **names)
    assert result["images"][0]["url"].startswith(f"{server.url}/files/"), "what anybody can open"
    assert {entry.headers["host"] for entry in record.all()} == {"fal.run", "queue.fal.run"}
    assert proxied.escapes() == []


@pytest.mark.case(4)
@pytest.mark.parametrize("way", ["sync", "async"])
def test_004_uploads_arrive_and_read_back(server: Scripted, proxied: Watched, record: Record, way: str) -> None:
    upload = {"sync": "fal_client.upload", "async": "await fal_client.upload_async"}[way]
    code = f"""
        import httpx
        url = {upload}(bytes(range(256)) * 4096, "application/octet-stream", file_name="a.bin")
        return [url, httpx.get(url).content == bytes(range(256)) * 4096]
    """
    url, is_equal = proxied(code)
    assert is_equal
    assert url.startswith(f"{server.url}/files/"), "what anybody can open"
    assert [entry.headers["host"] for entry in record.all()][:2] == ["rest.fal.ai", "v3.fal.media"]
    assert proxied.escapes() == []


@pytest.mark.case(4)
@pytest.mark.parametrize("way", ["sync", "async"])
def test_004_realtime_fetches_its_token_here_and_draws(
    server: Scripted, proxied: Watched, record: Record, way: str
) -> None:
    a = "async " if way == "async" else ""
    name, wait = ("realtime_async", "await ") if way == "async" else ("realtime", "")
    code = f"""
        {a}with fal_client.{name}(endpoint) as connection:
            {wait}connection.send(arguments)
            return sorted({wait}connection.recv())
    """
    assert "images" in proxied(code, endpoint=DEV, arguments=INPUT)
    assert [(entry.headers["host"], entry.path) for entry in record.all()] == [("rest.fal.ai", "/tokens/")]
    assert proxied.escapes() == []


def test_streams_pass(server: Scripted, proxied: Watched) -> None:
    events = proxied("return len(list(fal_client.stream(endpoint, arguments)))", endpoint=DEV, arguments=INPUT)
    assert events >= 2
    assert proxied.escapes() == []


def connect(server: Scripted, data: bytes = b"") -> socket.socket:
    """A raw connection to the plain port."""
    sock = socket.create_connection(("127.0.0.1", server.server.port), timeout=30)
    sock.sendall(data)
    return sock


def answer(sock: socket.socket) -> tuple[int, dict[str, Any]]:
    """Status and JSON body of an answer that ends with the connection."""
    received = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head
    return int(head.split()[1]), json.loads(body)


def established(sock: socket.socket) -> socket.socket:
    """The connection once the proxy has said yes."""
    assert sock.recv(4096) == b"HTTP/1.1 200 Connection established\r\n\r\n"
    return sock


def is_ended(sock: socket.socket) -> bool:
    """Wait until the other side has ended the connection, politely or not; False if it does not."""
    try:
        while sock.recv(65536):
            pass
    except TimeoutError:
        return False
    except (ssl.SSLError, ConnectionResetError):
        pass
    return True


def secure(server: Scripted, sock: socket.socket, name: str) -> ssl.SSLSocket:
    """TLS with `name` through an established tunnel, strictly verified."""
    trust = ssl.create_default_context(cafile=str(server.server.data_dir / "tls" / "ca.pem"))
    trust.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    return trust.wrap_socket(sock, server_hostname=name)


def get(inside: ssl.SSLSocket, host: str) -> bytes:
    inside.sendall(f"GET /.well-known/jwks.json HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    return b"".join(iter(lambda: inside.recv(65536), b""))


@pytest.mark.parametrize("name", FAL_HOSTS)
def test_every_name_of_fal_leads_here_under_its_own_certificate(server: Scripted, name: str) -> None:
    line = f"CONNECT {name.title()}:443 HTTP/1.1\r\n\r\n".encode()  # names have no case
    with closing(connect(server, line)) as sock, secure(server, established(sock), name) as inside:
        assert get(inside, "rest.fal.ai").startswith(b"HTTP/1.1 200 OK")


def test_a_request_that_comes_byte_by_byte_is_understood(server: Scripted) -> None:
    with closing(connect(server)) as sock:
        for byte in GOOD:
            sock.sendall(bytes([byte]))
        with secure(server, established(sock), "rest.fal.ai") as inside:
            assert b"OKP" in get(inside, "rest.fal.ai")


@pytest.mark.parametrize(
    "target",
    [
        "example.com:443",
        "rest.fal.ai.example.com:443",
        "xrest.fal.ai:443",
        "rest.fal.ai.:443",
        "rest.fal.ai:80",
        "rest.fal.ai:22",
        "127.0.0.1:443",
        "127.0.0.1:8000",
        "169.254.169.254:80",
        "[::1]:443",
        "localhost:443",
    ],
)
def test_every_other_place_is_refused(server: Scripted, target: str) -> None:
    with closing(connect(server, f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())) as sock:
        status, body = answer(sock)
    assert status == 403
    assert "rest.fal.ai" in body["detail"]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"CONNECT rest.fal.ai HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT https://rest.fal.ai:443 HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT a@rest.fal.ai:443 HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT rest.fal.ai:443 HTTP/2\r\n\r\n", 400),
        (b"CONNECT rest.fal.ai:443\r\n\r\n", 400),
        (b"CONNECT \xff\xfe\x00:443 HTTP/1.1\r\n\r\n", 403),
        (b"CONNECT  HTTP/1.1\r\n\r\n", 400),
        (GOOD + b"\x16\x03\x01", 400),
        (GOOD[:-2] + b"X: " + b"x" * 9000, 431),
        (GOOD[:-2] + b"X: " + b"x" * 9000 + b"\r\n\r\n", 431),
    ],
)
def test_bad_input_is_answered(server: Scripted, data: bytes, status: int) -> None:
    with closing(connect(server, data)) as sock:
        got, body = answer(sock)
    assert got == status
    assert isinstance(body["detail"], str)


def test_plain_http_on_the_same_port_is_as_before(server: Scripted) -> None:
    for request in (b"COPY / HTTP/1.0\r\n\r\n", b"CON / HTTP/1.0\r\n\r\n", b"GET /livez HTTP/1.0\r\n\r\n"):
        with closing(connect(server, request)) as sock:
            assert sock.recv(65536).startswith(b"HTTP/1.1 " if request[:3] != b"GET" else b"HTTP/1.1 200")


def test_what_is_no_tls_ends_the_tunnel(server: Scripted) -> None:
    with closing(connect(server, GOOD)) as sock:
        established(sock).sendall(b"GET / HTTP/1.1\r\n\r\n")
        alert = sock.recv(100)
        assert b"HTTP" not in alert
        assert is_ended(sock)


def test_silence_and_crowds_have_limits_and_a_stop_does_not_wait_for_them(start_server: StartServer) -> None:
    limits = {"HEAD_S": 1.0, "HANDSHAKE_S": 4.0, "FIRST_REQUEST_S": 4.0, "MAX_TUNNELS": 3}
    server = start_server(constants={f"server.http.tunnels.{name}": value for name, value in limits.items()})
    with closing(connect(server, b"CONNECT rest")) as sock:
        assert answer(sock)[0] == 408
    with closing(connect(server, GOOD)) as sock:
        assert is_ended(established(sock)), "no handshake came"
    with closing(connect(server, GOOD)) as sock, secure(server, established(sock), "rest.fal.ai") as inside:
        assert is_ended(inside), "no request came"

    crowd = [busy_tunnel(server) for _ in range(3)]
    with closing(connect(server, GOOD)) as sock:
        status, body = answer(sock)
    assert (status, body["detail"]) == (503, "3 tunnels are open already")
    crowd.pop().close()
    server.until(lambda: b" 200 " in _first_line(server))

    with closing(connect(server, GOOD)) as unused:
        established(unused)
        assert server.server.stop() == 0
        assert is_ended(unused)
    for inside in crowd:
        assert is_ended(inside)
        inside.close()
    assert "Traceback" not in server.server.output


def busy_tunnel(server: Scripted) -> ssl.SSLSocket:
    """A tunnel through which one request has come, and that stays open for more."""
    inside = secure(server, established(connect(server, GOOD)), "rest.fal.ai")
    inside.sendall(b"GET /.well-known/jwks.json HTTP/1.1\r\nHost: rest.fal.ai\r\n\r\n")
    assert inside.recv(65536).startswith(b"HTTP/1.1 200")
    return inside


def _first_line(server: Scripted) -> bytes:
    with closing(connect(server, GOOD)) as sock:
        return sock.recv(100)


def test_without_tls_there_are_no_tunnels(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server("--tls-port", "0")
    with closing(connect(server, GOOD)) as sock:
        status, body = answer(sock)
    assert status == 503
    assert "--tls-port" in body["detail"]


def submit_by_tunnel(server: Scripted, name: bytes = b"queue.fal.run") -> dict[str, Any]:
    """The answer to a submit through a tunnel to `name`."""
    body = json.dumps(INPUT).encode()
    head = f"POST /{DEV} HTTP/1.1\r\nHost: queue.fal.run\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    request = GOOD.replace(b"rest.fal.ai", name)
    with closing(connect(server, request)) as sock, secure(server, established(sock), name.decode()) as inside:
        inside.sendall(head.encode() + body)
        answered = b"".join(iter(lambda: inside.recv(65536), b""))
    submitted: dict[str, Any] = json.loads(answered.partition(b"\r\n\r\n")[2])
    return submitted


def pictures_of(server: Scripted, request_id: str, host: str) -> list[str]:
    """Addresses of the pictures, as one who came by this name is told."""
    path = f"{server.url}/fal-ai/flux/requests/{request_id}"
    asked = {"host": host}
    server.until(lambda: httpx.get(path, headers=asked, verify=False).status_code == 200)
    answer = httpx.get(path, headers=asked, verify=False).json()
    return [image["url"] for image in answer["images"]]


def test_follow_ups_keep_fals_name_and_pictures_have_the_public_one(start_server: StartServer) -> None:
    server = start_server("--public-url", "https://gpu.example.com/fal")
    submitted = submit_by_tunnel(server)
    assert submitted["status_url"].startswith("https://queue.fal.run/fal-ai/flux/requests/")
    (picture,) = pictures_of(server, submitted["request_id"], "queue.fal.run")
    assert picture.startswith("https://gpu.example.com/fal/files/")
    # Who got that address and still uses the proxy is led here, too.
    line = b"CONNECT gpu.example.com:443 HTTP/1.1\r\n\r\n"
    with closing(connect(server, line)) as sock, secure(server, established(sock), "gpu.example.com") as inside:
        assert get(inside, "gpu.example.com").startswith(b"HTTP/1.1 200 OK")


def test_without_a_public_name_pictures_are_on_the_plain_port(server: Scripted) -> None:
    request_id = submit_by_tunnel(server)["request_id"]
    (picture,) = pictures_of(server, request_id, "queue.fal.run")
    assert picture.startswith(f"{server.url}/files/")
    assert httpx.get(picture, verify=False).headers["content-type"].startswith("image/")
