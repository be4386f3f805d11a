"""Cases 1 to 13: how clients find the server, and that nothing depends on which way they came."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

import httpx
import pytest

from tests.conformance.child import HERE, Child
from tests.conformance.recording import Record
from tests.conformance.scripted import DEV, TINY, Scripted
from tests.server.receiver import Receiver

FOX = {"prompt": "a fox", **TINY}


@pytest.mark.case(1)
def test_001_python_runs_by_two_variables_and_a_private_authority(python: Child, server: Scripted) -> None:
    hosts = python("return [os.environ['FAL_RUN_HOST'], os.environ['FAL_QUEUE_RUN_HOST']]")
    assert hosts == [f"127.0.0.1:{server.server.tls_port}/run", f"127.0.0.1:{server.server.tls_port}/queue"]
    result = python("return fal_client.run(endpoint, arguments)", endpoint=DEV, arguments=FOX)
    assert (result["prompt"], len(result["images"])) == ("a fox", 1)


@pytest.mark.case(2)
def test_002_python_subscribes_and_its_urls_lead_back(python: Child, server: Scripted) -> None:
    urls, result = python(
        """
        handle = fal_client.submit(endpoint, arguments)
        urls = [handle.status_url, handle.response_url, handle.cancel_url]
        return urls, fal_client.subscribe(endpoint, arguments)
        """,
        endpoint=DEV,
        arguments=FOX,
    )
    assert all(url.startswith(f"{server.tls_url}/queue/fal-ai/flux/requests/") for url in urls)
    assert result["prompt"] == "a fox"


@pytest.fixture
def by_name(server: Scripted) -> Iterator[Child]:
    """`fal_client` that is told one name only; the piece below stands for a hosts file with its queue's name."""
    environment = server.server.setup("python") | {"FAL_RUN_HOST": f"localhost:{server.server.tls_port}"}
    del environment["FAL_QUEUE_RUN_HOST"]
    child = Child([sys.executable, str(HERE / "python_child.py")], environment)
    child(
        """
        import socket
        real = socket.getaddrinfo
        def getaddrinfo(host, *rest, **more):
            return real("127.0.0.1" if host in ("queue.localhost", b"queue.localhost") else host, *rest, **more)
        socket.getaddrinfo = getaddrinfo
        """
    )
    yield child
    child.kill()


@pytest.mark.case(3)
def test_003_the_queue_is_found_by_its_host_name_alone(by_name: Child, server: Scripted, record: Record) -> None:
    result = by_name("return fal_client.subscribe(endpoint, arguments)", endpoint=DEV, arguments=FOX)
    assert result["prompt"] == "a fox"
    (submit,) = record.of("POST", DEV)
    assert submit.path == f"/{DEV}"
    assert submit.headers["host"] == f"queue.localhost:{server.server.tls_port}"


@pytest.mark.case(5)
def test_005_python_async_subscribes_without_a_redirect(python: Child, server: Scripted, record: Record) -> None:
    url, result = python(
        """
        handle = await fal_client.submit_async(endpoint, arguments)
        return handle.status_url, await fal_client.subscribe_async(endpoint, arguments)
        """,
        endpoint=DEV,
        arguments=FOX,
    )
    assert url.startswith(f"{server.tls_url}/queue/")
    assert result["prompt"] == "a fox"
    assert len(record.all()) >= 4
    assert {seen.status for seen in record.all()} <= {200, 202}


@pytest.mark.case(6)
def test_006_node_reaches_the_proxy_endpoint_only(js: Child, record: Record) -> None:
    ran, subscribed, fetched = js(
        """
        const ran = await fal.run(endpoint, { input })
        const subscribed = await fal.subscribe(endpoint, { input, pollInterval: 50 })
        const fetched = await fal.queue.result(endpoint, { requestId: subscribed.requestId })
        return [ran.data, subscribed.data, fetched.data]
        """,
        endpoint=DEV,
        input=FOX,
    )
    assert ran["prompt"] == "a fox"
    assert subscribed == fetched
    assert {seen.path for seen in record.all()} == {"/api/fal/proxy"}
    hosts = {httpx.URL(seen.target or "").host for seen in record.all()}
    assert hosts == {"fal.run", "queue.fal.run"}


@pytest.mark.case(7)
def test_007_a_webhook_asked_for_through_the_proxy_is_called(
    hasty: Scripted, hasty_js: Child, receiver: Receiver
) -> None:
    record = hasty.record()
    submitted = hasty_js(
        "return await fal.queue.submit(endpoint, { input, webhookUrl })",
        endpoint=DEV,
        input=FOX,
        webhookUrl=receiver.url,
    )
    (submit,) = record.of("POST", DEV)
    assert httpx.URL(submit.target or "").params["fal_webhook"] == receiver.url
    hasty.until(lambda: receiver.calls)
    assert receiver.payloads[0]["request_id"] == submitted["request_id"]
    assert receiver.payloads[0]["payload"]["prompt"] == "a fox"


@pytest.mark.case(8)
def test_008_node_by_middleware_over_plain_http(js: Child, server: Scripted, record: Record) -> None:
    told = js(
        """
        const fal = client.createFalClient(middleware)
        const ran = await fal.run(endpoint, { input })
        const subscribed = await fal.subscribe(endpoint, { input, pollInterval: 50 })
        const url = await fal.storage.upload(new Blob(["some text"], { type: "text/plain" }))
        const stream = await fal.stream(endpoint, { input })
        const events = []
        for await (const event of stream) events.push(event)
        return { ran: ran.data, subscribed: subscribed.data, url, last: events.at(-1), done: await stream.done() }
        """,
        endpoint=DEV,
        input=FOX,
    )
    assert [told[way]["prompt"] for way in ("ran", "subscribed", "last")] == ["a fox"] * 3
    assert told["last"] == told["done"]
    assert told["url"].startswith(f"{server.url}/")
    assert httpx.get(told["url"]).text == "some text"
    assert {seen.path.split("/")[1] for seen in record.all()} == {"run", "queue", "rest", "files"}
    assert {seen.headers["host"] for seen in record.all()} == {f"127.0.0.1:{server.server.port}"}


@pytest.mark.case(10)
def test_010_the_proxy_endpoint_opens_no_connection(http: httpx.Client) -> None:
    assert http.post("/api/fal/proxy", json=FOX).status_code == 400
    elsewhere = {"x-fal-target-url": "https://example.com/"}
    assert http.post("/api/fal/proxy", json=FOX, headers=elsewhere).status_code == 400
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.5)
        here = {"x-fal-target-url": f"http://127.0.0.1:{listener.getsockname()[1]}/"}
        answer = http.post("/api/fal/proxy", json=FOX, headers=here)
        assert answer.status_code == 400
        assert isinstance(answer.json()["detail"], str)
        with pytest.raises(TimeoutError):
            listener.accept()
