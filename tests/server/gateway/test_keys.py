"""Keys: who is let in, and fal's words for who is not."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.datastructures import Headers

from server.gateway import keys
from server.gateway.keys import KeyRing
from server.http.errors import PlainError
from server.http.peers import is_local_caller

RING = KeyRing(["id:secret", "second"])


def refusal(value: str | None) -> str:
    headers = Headers({} if value is None else {"authorization": value})
    with pytest.raises(PlainError) as caught:
        RING.check(headers)
    assert caught.value.status == 401
    return str(caught.value.body["detail"])


@pytest.mark.parametrize("value", ["Key id:secret", "key id:secret", "KEY  second ", "Bearer id:secret"])
def test_a_known_key_is_let_in_in_any_letter_case_of_the_scheme(value: str) -> None:
    RING.check(Headers({"authorization": value}))


def test_refusals_have_fals_words() -> None:
    assert refusal("Key wrong:key") == "No user found for Key ID and Secret"
    assert refusal("Key ID:SECRET") == "No user found for Key ID and Secret"
    assert refusal("id:secret").startswith("Invalid Key Authorization header format")
    assert refusal("Key").startswith("Invalid Key Authorization header format")
    assert refusal("Basic aWQ6c2VjcmV0").startswith("Invalid Key Authorization header format")
    assert refusal(None) == keys.NO_CREDENTIALS


def test_without_keys_everybody_is_let_in() -> None:
    KeyRing([]).check(Headers({}))
    KeyRing([]).check(Headers({"authorization": "nonsense"}))


@pytest.mark.parametrize(
    ("client", "headers", "is_local"),
    [
        (("127.0.0.1", 1), {}, True),
        (("::1", 1), {}, True),
        (None, {}, True),
        (("192.168.1.4", 1), {}, False),
        (("not an address", 1), {}, False),
        (("127.0.0.1", 1), {"x-forwarded-for": "203.0.113.9"}, False),
    ],
)
def test_a_caller_behind_a_proxy_is_not_local(client: Any, headers: dict[str, str], is_local: bool) -> None:
    assert is_local_caller({"type": "http", "client": client}, Headers(headers)) is is_local
