"""Keys: who is let in, and fal's words for who is not."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers

from server.gateway import guesses, keys
from server.gateway.guesses import WRONG_KEYS, Guesses, peer_of
from server.gateway.key_file import USUAL_SCOPES, KeyFile, KeyFileError
from server.gateway.keys import ANYBODY, LOOK_EVERY_S, Caller, KeyRing
from server.http.errors import PlainError
from server.http.peers import is_local_caller
from server.jobs.limits import Limits

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
    assert KeyRing([]).check(Headers({})) is ANYBODY
    assert KeyRing([]).check(Headers({"authorization": "nonsense"})) is ANYBODY


def test_each_configured_key_is_a_tenant_named_without_its_secret() -> None:
    first, second = (RING.check(Headers({"authorization": f"Key {key}"})) for key in ("id:secret", "second"))
    assert first.tenant != second.tenant
    assert "secret" not in first.tenant
    assert KeyRing(["id:secret"]).check(Headers({"authorization": "Key id:secret"})) == first, (
        "the same after a restart"
    )


# Issued keys


class Ring:
    """A ring over a key file, and a clock that tests move."""

    def __init__(self, folder: Path, *configured: str, **defaults: int) -> None:
        self.now = 0.0
        self.file = KeyFile(folder / "keys.json")
        self.ring = KeyRing(configured, self.file, Limits(**defaults), lambda: self.now)

    def later(self) -> None:
        self.now += LOOK_EVERY_S

    def admits(self, key: str) -> Caller | None:
        try:
            return self.ring.check(Headers({"authorization": f"Key {key}"}))
        except PlainError:
            return None


def test_an_issued_key_admits_as_its_own_tenant_and_only_its_digest_is_kept(tmp_path: Path) -> None:
    ring = Ring(tmp_path, "configured")
    key, issued = ring.file.issue("ann")
    key_id, _, secret = key.partition(":")
    assert ring.admits(key) == Caller(key_id, key_id, frozenset(USUAL_SCOPES))
    assert [ring.admits(wrong) for wrong in (key_id, f"{key_id}:", secret)] == [None, None, None]
    assert ring.admits("configured") is not None
    stored = ring.file.path.read_text()
    assert secret not in stored
    assert len(bytes.fromhex(secret)) == 32
    assert stat.S_IMODE(ring.file.path.stat().st_mode) == 0o600
    assert issued.name == "ann"


def test_a_revoked_key_is_refused_at_the_next_look_and_for_good(tmp_path: Path) -> None:
    ring = Ring(tmp_path)
    (key, issued), (other, _) = ring.file.issue(), ring.file.issue()
    ring.later()
    caller = ring.admits(key)
    assert caller is not None
    assert ring.ring.caller_of(caller.key) == caller
    assert ring.file.revoke(issued.id)
    assert not ring.file.revoke(issued.id), "it has ended already"
    assert not ring.file.revoke("nobody")
    ring.later()
    assert ring.admits(key) is None
    assert ring.ring.caller_of(caller.key) is None, "and so are its tokens"
    assert ring.admits(other) is not None
    assert Ring(tmp_path, key).admits(key) is None, "not even if the settings name it"


def test_a_revoked_key_is_refused_at_once_where_the_server_is_told(tmp_path: Path) -> None:
    ring = Ring(tmp_path)
    key, issued = ring.file.issue()
    ring.later()
    assert ring.admits(key) is not None
    ring.file.revoke(issued.id)
    ring.ring.refresh()
    assert ring.admits(key) is None


def test_a_server_that_asks_for_keys_never_opens_while_it_runs(tmp_path: Path) -> None:
    ring = Ring(tmp_path)
    assert ring.ring.is_open
    key, _ = ring.file.issue()
    ring.later()
    assert not ring.ring.is_open
    ring.file.path.unlink()
    ring.later()
    assert not ring.ring.is_open
    assert ring.admits(key) is None


def test_a_damaged_file_leaves_the_keys_of_before_and_stops_a_start(tmp_path: Path) -> None:
    ring = Ring(tmp_path)
    key, _ = ring.file.issue()
    ring.later()
    assert ring.admits(key) is not None
    ring.file.path.write_text('{"version": 1, "keys": [{}]}')
    ring.later()
    assert ring.admits(key) is not None
    with pytest.raises(KeyFileError, match="damaged"):
        Ring(tmp_path)


def test_keys_that_are_issued_at_once_are_all_kept(tmp_path: Path) -> None:
    def issue(number: int) -> str:
        return KeyFile(tmp_path / "keys.json").issue(str(number))[0]

    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(issue, range(24)))
    assert {key.partition(":")[0] for key in keys} == {key.id for key in KeyFile(tmp_path / "keys.json").read()}


def test_limits_are_the_tightest_of_a_tenants_keys_and_the_servers_for_the_rest(tmp_path: Path) -> None:
    ring = Ring(tmp_path, running=9, per_minute=60)
    ring.file.issue(tenant="ann", limits=Limits(running=5, waiting=7))
    _, tight = ring.file.issue(tenant="ann", limits=Limits(running=2))
    ring.later()
    ring.admits("")
    assert ring.ring.limits("ann") == Limits(running=2, waiting=7, per_minute=60)
    assert ring.ring.limits("bob") == Limits(running=9, per_minute=60)
    ring.file.revoke(tight.id)
    ring.later()
    ring.admits("")
    assert ring.ring.limits("ann").running == 5


# Guesses


def test_who_tries_keys_is_refused_for_a_while_but_a_neighbour_with_a_key_is_not() -> None:
    now = [0.0]
    tries = Guesses(lambda: now[0])
    tries.note_right("peer", "neighbour")
    for _ in range(WRONG_KEYS):
        tries.note_wrong("peer")
    for refused in (lambda: tries.note_wrong("peer"), lambda: tries.note_right("peer", "guessed")):
        with pytest.raises(PlainError) as caught:
            refused()
        assert (caught.value.status, caught.value.headers["retry-after"]) == (429, "60")
    tries.note_right("peer", "neighbour")
    tries.note_wrong("another peer")
    now[0] = 60.0
    tries.note_right("peer", "guessed")


@pytest.mark.parametrize(
    ("client", "forwarded", "peer"),
    [
        ("203.0.113.9", None, "203.0.113.9"),
        ("203.0.113.9", "198.51.100.1", "203.0.113.9"),
        ("127.0.0.1", "198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("2001:db8::1", None, "2001:db8::/64"),
        ("2001:db8:0:0:ffff::1", None, "2001:db8::/64"),
    ],
)
def test_a_peer_is_the_network_that_a_caller_comes_from(client: str, forwarded: str | None, peer: str) -> None:
    headers = Headers({} if forwarded is None else {"x-forwarded-for": forwarded})
    assert peer_of({"type": "http", "client": (client, 1)}, headers) == peer


@pytest.mark.parametrize(
    ("client", "headers", "is_local"),
    [
        (("127.0.0.1", 1), {}, True),
        (("::1", 1), {}, True),
        (None, {}, True),
        (("192.168.1.4", 1), {}, False),
        (("not an address", 1), {}, False),
        (("127.0.0.1", 1), {"x-forwarded-for": "203.0.113.9"}, False),
        (("127.0.0.1", 1), {"X-Real-IP": "203.0.113.9"}, False),
        (("127.0.0.1", 1), {"via": "1.1 caddy"}, False),
        (("127.0.0.1", 1), {"x-forwarded-proto": "https"}, False),
        (("127.0.0.1", 1), {"X-Forwarded-Prefix": "/flux"}, False),
        (("127.0.0.1", 1), {"x-original-forwarded-for": "203.0.113.9"}, False),
    ],
)
def test_a_caller_behind_a_proxy_is_not_local(client: Any, headers: dict[str, str], is_local: bool) -> None:
    assert is_local_caller({"type": "http", "client": client}, Headers(headers)) is is_local


def test_no_more_than_so_many_peers_and_keys_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guesses, "PEERS", 3)
    tries = Guesses(lambda: 100.0)
    for _ in range(WRONG_KEYS):
        tries.note_wrong("guesser")
    for number in range(2):
        tries.note_wrong(f"other-{number}")
    with pytest.raises(PlainError):
        tries.note_right("guesser", "found")
    tries.note_wrong("other-2")
    tries.note_right("guesser", "found")  # three others came since: it is forgotten
    for number in range(3):
        tries.note_right(f"other-{number}", "key")
    for _ in range(WRONG_KEYS):
        tries.note_wrong("guesser")
    with pytest.raises(PlainError):
        tries.note_right("guesser", "found")
