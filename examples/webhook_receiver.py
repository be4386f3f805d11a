"""Take fal's webhooks, and believe only those that the server signed.

    pip install cryptography httpx
    python webhook_receiver.py --server http://127.0.0.1:8000 --port 9000

Then submit with `?fal_webhook=http://127.0.0.1:9000/`, or `fal_client.submit(..., webhook_url=...)`. The server calls
addresses of your own network only where `serve --allow-private-cidr 127.0.0.0/8` says so. For a server on another
machine give `--host` with an address of this one that it reaches, and name that in both.

A receiver that was written for fal needs one change: the keys come from this server, not from fal.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MAX_AGE_S = 300
LARGEST = 32 << 20


def public_keys(server: str) -> list[Ed25519PublicKey]:
    """What the server signs with: one key, or two while it is being changed."""
    keys = httpx.get(f"{server}/rest/.well-known/jwks.json", timeout=10).raise_for_status().json()["keys"]
    return [Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"] + "==")) for key in keys]


def is_genuine(headers: Message | Mapping[str, str], body: bytes, keys: list[Ed25519PublicKey]) -> bool:
    """Whether one of the keys signed these headers and this body, within the last five minutes."""
    names = ("request-id", "user-id", "timestamp", "signature")
    request_id, user_id, timestamp, signature = (headers.get(f"x-fal-webhook-{name}", "") for name in names)
    if not timestamp.isdigit() or abs(time.time() - int(timestamp)) > MAX_AGE_S:
        return False
    message = "\n".join((request_id, user_id, timestamp, hashlib.sha256(body).hexdigest())).encode()
    return any(_signed(key, signature, message) for key in keys)


def _signed(key: Ed25519PublicKey, signature: str, message: bytes) -> bool:
    try:
        key.verify(bytes.fromhex(signature), message)
    except (ValueError, InvalidSignature):
        return False
    return True


def handler(keys: list[Ed25519PublicKey], take: Callable[[dict[str, Any]], None]) -> type[BaseHTTPRequestHandler]:
    """Args: take: gets each end once; a webhook may come twice, when its first answer was lost."""
    seen: set[str] = set()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("content-length", 0))
            body = self.rfile.read(length) if length <= LARGEST else b""
            if not is_genuine(self.headers, body, keys):
                return self._answer(401)
            end = json.loads(body)
            if end["request_id"] not in seen:
                seen.add(end["request_id"])
                take(end)
            self._answer(200)

        def _answer(self, status: int) -> None:
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Not a line a call."""

    return Receiver


def show(end: dict[str, Any]) -> None:
    """One line: what was drawn, or why nothing was."""
    pictures = [image["url"] for image in (end.get("payload") or {}).get("images", [])]
    print(end["request_id"], end["status"], *pictures, end.get("error") or "", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Receive signed webhooks.")
    parser.add_argument("--server", default="http://127.0.0.1:8000")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", type=int, default=9000)
    options = parser.parse_args()
    receiver = ThreadingHTTPServer((options.host, options.port), handler(public_keys(options.server), show))
    print(f"listening on http://{options.host}:{receiver.server_address[1]}/", flush=True)
    receiver.serve_forever()


if __name__ == "__main__":
    main()
