"""Which checkpoints a request may have loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from models.arguments import UnknownModelError
from models.checkpoint_files import locate
from models.errors import LoadError
from models.offers import check_offers, offered, spelled_out
from models.registry import REGISTRY

DEV = REGISTRY["FLUX.1-dev"]
EMBEDDED = Path(REGISTRY["flux-shapes"].source)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache that has FLUX.1-dev, as far as names and headers tell."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / f"models--{DEV.source.replace('/', '--')}"
    shutil.copytree(EMBEDDED, repo / "snapshots" / "c0ffee")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("c0ffee")
    return repo / "snapshots" / "c0ffee"


def test_here_means_what_the_cache_has_whole(cache: Path) -> None:
    assert spelled_out(["here"], [REGISTRY["flux-shapes"]]) == ("FLUX.1-dev",)
    assert spelled_out(["here", "mine=/x"], [DEV]) == ("mine=/x",)
    next((cache / "transformer").glob("*.safetensors")).unlink()
    assert spelled_out(["here"], []) == ()


def test_what_is_served_anyway_is_no_offer_and_no_request_downloads_unless_told() -> None:
    names = ("FLUX.1-dev", "FLUX.1-schnell")
    assert offered(["flux-shapes", "FLUX.1-dev"], names) == offered(["FLUX.1-dev"], ["FLUX.1-schnell"])
    assert [spec.fetches for spec in offered(["flux-shapes"], names)] == [False, False]
    assert [spec.fetches for spec in offered(["flux-shapes"], names, fetches=True)] == [True, True]
    with pytest.raises(UnknownModelError, match="two models have the name"):
        offered(["FLUX.1-dev"], [f"FLUX.1-dev={EMBEDDED}"])


def test_what_no_request_could_load_is_refused_at_the_start(cache: Path) -> None:
    check_offers(offered(["flux-shapes"], ["random:FLUX.1-dev", "FLUX.1-dev"]))
    with pytest.raises(LoadError, match=r"FLUX\.1-schnell` first, or add --fetch-on-demand"):
        check_offers(offered(["flux-shapes"], ["FLUX.1-schnell"]))
    check_offers(offered(["flux-shapes"], ["FLUX.1-schnell"], fetches=True))


def test_a_checkpoint_that_may_not_be_fetched_is_not_asked_for(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.checkpoint_files.HfApi", lambda: pytest.fail("the hub was asked"))
    (offer,) = offered(["flux-shapes"], ["FLUX.1-dev"])
    assert locate(offer) == cache
    (offer,) = offered(["flux-shapes"], ["FLUX.1-schnell"])
    with pytest.raises(LoadError, match="not whole in the local cache"):
        locate(offer)
