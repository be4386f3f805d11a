"""Adapters through a real worker process: from its folder to pixels, and hostile files beside good ones."""

from __future__ import annotations

from pathlib import Path

from models.components import FluxComponents
from pipelines.protocol.conditions import Adapter
from pipelines.protocol.frames import Failed, Finished, Heartbeat, Picture, Ready, Submit
from tests.pipelines.adapters.loras import random_lora, save_diffusers
from tests.pipelines.driving import make_params
from tests.pipelines.worker.test_worker import Peer, worker


def drawn(peer: Peer, *files: str, scale: float = 1000.0) -> bytes:
    """The pixels of a request with these adapters. The tiny model's weights are too quiet for small scales."""
    params = make_params(adapters=tuple(Adapter(file, scale) for file in files))
    peer.send(Submit("good", 1, params.to_dict()))
    (picture,) = [frame for frame in peer.until(Finished, "good") if isinstance(frame, Picture)]
    return picture.pixels


def test_a_worker_draws_with_the_adapters_of_its_folder(components: FluxComponents, tmp_path: Path) -> None:
    for seed in range(2):
        save_diffusers(random_lora(components.transformer, 2, seed), tmp_path / f"{seed}.safetensors")
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x04\x95 a pickle that runs things")
    with worker("--device", "cpu", "--model", "random:tiny", "--adapters", str(tmp_path)) as peer:
        peer.until(Ready)
        plain = drawn(peer)
        assert len({plain, drawn(peer, "0.safetensors"), drawn(peer, "1.safetensors")}) == 3
        peer.send(Submit("bad", 1, make_params(adapters=(Adapter("pickle.safetensors"),)).to_dict()))
        failed = peer.until(Failed, "bad")[-1]
        assert isinstance(failed, Failed)
        assert failed.kind == "input_error"
        assert tuple(failed.loc) == ("loras", 0, "path")
        assert drawn(peer) == plain
        beat = peer.until(Heartbeat)[-1]
        assert isinstance(beat, Heartbeat)
        assert beat.memory["adapters"] > 0
