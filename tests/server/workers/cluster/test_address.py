"""Which clusters are refused before anything is connected to."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest

from server.workers.cluster.address import unreachable, unusable
from server.workers.cluster.connection import HeadRefusedError, connect
from server.workers.cluster.placing import Placing


@pytest.mark.parametrize(
    "address", ["auto", "127.0.0.1:6379", "10.1.2.3:6379", "ray://192.168.0.7:10001", "[::1]:6379"]
)
def test_a_head_inside_is_used(address: str) -> None:
    assert unusable(address, {}, is_installed=lambda name: name) is None


@pytest.mark.parametrize("address", ["8.8.8.8:6379", "ray://8.8.8.8:10001", "[2600::1]:6379"])
def test_a_head_on_a_public_address_is_refused_unless_it_asks_for_a_token(address: str) -> None:
    """ShadowRay: whoever reaches it runs programs on every machine."""
    assert "public address" in str(unusable(address, {}, is_installed=lambda name: name))
    assert unusable(address, {"RAY_AUTH_MODE": "token"}, is_installed=lambda name: name) is None


@pytest.mark.parametrize("named", ["8.8.8.8:6379", "ray://8.8.8.8:10001"])
def test_auto_means_what_the_environment_names(named: str) -> None:
    """Ray asks RAY_ADDRESS first."""
    environ = {"RAY_ADDRESS": named}
    assert "8.8.8.8 is a public address" in str(unusable("auto", environ, is_installed=lambda name: name))
    assert unusable("auto", {**environ, "RAY_AUTH_MODE": "token"}, is_installed=lambda name: name) is None
    assert unusable("10.1.2.3:6379", environ, is_installed=lambda name: name) is None, "what is given counts"
    assert unusable("auto", {"RAY_ADDRESS": ""}, is_installed=lambda name: name) is None


@pytest.mark.parametrize(("address", "missing"), [("auto", "ray"), ("ray://127.0.0.1:10001", "grpc")])
def test_what_is_not_installed_is_named(address: str, missing: str) -> None:
    said = str(unusable(address, {}, is_installed=lambda name: None if name == missing else name))
    assert said.startswith(f"the package {missing} is not installed")


@pytest.mark.parametrize("said", ["[Errno 110] ETIMEDOUT", "ray client connection timeout", "StatusCode.UNAVAILABLE"])
def test_a_head_that_does_not_answer_is_one_sentence_that_says_where_to_look(said: str) -> None:
    sentence = unreachable("ray://10.0.0.1:10001", said)
    assert sentence.startswith(
        "Ray at ray://10.0.0.1:10001 cannot be reached: nobody answers there; look whether the head"
    )
    assert "--ray-client-server-port" in sentence
    assert "ray start --address" in unreachable("10.0.0.1:6379", said)
    assert "RAY_ADDRESS" in unreachable("auto", "Could not find any running Ray instance.")


def test_what_ray_says_otherwise_is_passed_on() -> None:
    assert "Version mismatch; look" in unreachable("ray://10.0.0.1:10001", "Version mismatch.")


@pytest.mark.parametrize(("address", "is_refused"), [("auto", True), ("ray://10.0.0.1:10001", False)])
def test_a_head_that_auto_has_found_is_looked_at_before_it_is_used(
    monkeypatch: pytest.MonkeyPatch, address: str, is_refused: bool
) -> None:
    """Behind ray:// is the address that the cluster uses itself; what leads there was looked at before."""
    context = SimpleNamespace(gcs_address="8.8.8.8:6379")
    ray = SimpleNamespace(init=lambda **about: None, get_runtime_context=lambda: context)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr("server.workers.cluster.connection.unusable", partial(unusable, is_installed=bool))
    with pytest.raises(HeadRefusedError, match="is a public address") if is_refused else nullcontext():
        assert connect(address) is ray


def test_the_node_says_that_a_head_was_refused() -> None:
    placing = Placing("auto", lambda found: None)
    placing._take({"refused": "8.8.8.8 is a public address"})
    assert placing.problem == "Ray at auto is not used: 8.8.8.8 is a public address"
    assert not placing.is_connected.is_set()
