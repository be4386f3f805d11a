"""Checkpoints from folders and caches, and the sentences that explain why one cannot be had."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
import torch
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from models import checkpoint_files, host_memory
from models.accelerator import CpuAccelerator, DeviceError, open_accelerator, pick_dtype
from models.checkpoint_files import adopt, locate
from models.components import FluxComponents, weight_bytes
from models.errors import LoadError
from models.loading import PartCache, load
from models.memory import Offload
from models.registry import REGISTRY, TINY
from pipelines.families.flux1.encode import encode_prompt
from pipelines.families.pool import ModelPool
from tests.models.conftest import copy_of, spec
from tests.pipelines.pictures.test_safety import make_classifier, make_concepts


def test_a_folder_gives_the_weights_that_were_saved(tiny: FluxComponents, checkpoint: Path) -> None:
    stages: list[tuple[str, float]] = []
    loaded = load(spec(checkpoint), CpuAccelerator(), progress=lambda stage, fraction: stages.append((stage, fraction)))
    for name, module in tiny.modules.items():
        theirs = loaded.modules[name].state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in module.state_dict().items()), name
    assert not any(parameter.requires_grad for parameter in loaded.transformer.parameters())
    assert loaded.size_multiple == 8
    assert loaded.safety is None
    fractions = [fraction for _, fraction in stages]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_dtype_is_that_of_the_device_unless_said(checkpoint: Path) -> None:
    accelerator = CpuAccelerator()
    assert load(spec(checkpoint), accelerator).dtype == torch.float32
    assert load(spec(checkpoint), accelerator, torch.bfloat16).dtype == torch.bfloat16
    assert pick_dtype("auto", accelerator) == torch.float32
    assert pick_dtype("bfloat16", accelerator) == torch.bfloat16
    with pytest.raises(ValueError, match="float3"):
        pick_dtype("float3", accelerator)


def test_random_weights_are_the_same_every_time(tiny: FluxComponents) -> None:
    again = load(TINY, CpuAccelerator())
    ours, theirs = tiny.transformer.state_dict(), again.transformer.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    weight = tiny.transformer.transformer_blocks[0].ff.net[2].weight
    assert float(weight.std()) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("make", [make_classifier, make_concepts])
def test_both_layouts_of_safety_checkers_are_found(copy: Path, make: object) -> None:
    safety = make({0: "normal", 1: "nsfw"}) if make is make_classifier else make_concepts()  # type: ignore[operator]
    safety.model.save_pretrained(copy / "safety_checker")
    beside = "safety_checker" if make is make_classifier else "feature_extractor"
    safety.image_processor.save_pretrained(copy / beside)
    loaded = load(spec(copy), CpuAccelerator())
    assert loaded.safety is not None
    assert type(loaded.safety.model) is type(safety.model)


def test_equal_parts_are_shared_between_checkpoints(checkpoint: Path, copy: Path) -> None:
    cache = PartCache()
    first = load(spec(checkpoint), CpuAccelerator(), cache=cache)
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content)
    second = load(spec(copy), CpuAccelerator(), cache=cache)
    assert second.text_encoder_2 is first.text_encoder_2
    assert second.vae is first.vae
    assert second.transformer is not first.transformer
    assert second.shared == {"text_encoder", "text_encoder_2", "vae"}


def test_a_pool_unloads_the_least_recently_used(checkpoint: Path, copy: Path, tmp_path: Path) -> None:
    (copy / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    source = checkpoint / "transformer" / "diffusion_pytorch_model.safetensors"
    (copy / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(source.read_bytes())
    specs = [spec(checkpoint, "one"), spec(copy, "two")]
    roomy = ModelPool(specs, CpuAccelerator())
    roomy.runner("one")
    alone = roomy.weights()
    roomy.runner("two")
    assert roomy.weights() == alone + weight_bytes(roomy.runner("two").components.transformer)
    assert roomy.loaded == ["one", "two"]
    tight = ModelPool(specs, CpuAccelerator(), memory_bytes=alone + 100)
    tight.runner("one")
    tight.runner("two")
    assert tight.loaded == ["two"]
    tight.runner("one")
    assert tight.loaded == ["one"]
    with pytest.raises(KeyError):
        tight.runner("three")


def test_equal_files_of_two_repositories_in_a_cache_are_shared(checkpoint: Path, tmp_path: Path) -> None:
    """Every repository in a Hugging Face cache has blobs of its own, named by their hashes."""
    folders = []
    for name in ("one", "two"):
        repo = tmp_path / f"models--owner--{name}"
        (repo / "blobs").mkdir(parents=True)
        folders.append(copy_of(checkpoint, repo / "snapshots" / "0"))
        for file in folders[-1].rglob("*.safetensors"):
            content = file.read_bytes()
            blob = repo / "blobs" / hashlib.sha256(content).hexdigest()
            blob.write_bytes(content)
            file.unlink()
            file.symlink_to(blob)
    cache = PartCache()
    load(spec(folders[0]), CpuAccelerator(), cache=cache)
    assert load(spec(folders[1]), CpuAccelerator(), cache=cache).shared == {
        "text_encoder", "text_encoder_2", "transformer", "vae"
    }  # fmt: skip


@pytest.mark.parametrize("offload", ["none", "text"])
def test_files_may_be_overwritten_once_they_are_loaded(copy: Path, checkpoint: Path, offload: Offload) -> None:
    """Mapped weights would end this process (SIGBUS) where they are read from a file that became shorter."""
    for part in ("text_encoder", "text_encoder_2", "transformer", "vae"):
        for file in (copy / part).glob("*.safetensors"):
            content = file.read_bytes()
            file.unlink()
            file.write_bytes(content)
    loaded = load(spec(copy), CpuAccelerator(), offload=offload)
    for file in copy.rglob("*.safetensors"):
        file.write_bytes(b"")
    with torch.no_grad():
        ours, theirs = (
            encode_prompt(each, "a red circle", 16, torch.clone).tokens
            for each in (loaded, load(spec(checkpoint), CpuAccelerator()))
        )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("source", ["random:FLUX.1-dev", "folder"])
def test_what_the_host_cannot_hold_is_refused_by_arithmetic(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setattr(host_memory, "available", lambda: 100_000)
    chosen = spec(checkpoint) if source == "folder" else REGISTRY[source]
    with pytest.raises(LoadError, match=r"needs \d+\.\d GB of this machine's memory, 0\.0 GB are free"):
        load(chosen, CpuAccelerator(), torch.bfloat16)


def test_a_second_checkpoint_needs_no_memory_for_what_it_shares(
    checkpoint: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = PartCache()
    load(spec(checkpoint), CpuAccelerator(), cache=cache)
    monkeypatch.setattr(host_memory, "available", lambda: 0)
    assert len(load(spec(copy), CpuAccelerator(), cache=cache).shared) == 4


def test_a_vocabulary_of_sentencepiece_alone_is_read(copy: Path) -> None:
    """Many T5 folders have `spiece.model` and no tokenizer.json."""
    for file in (copy / "tokenizer_2").iterdir():
        file.unlink()
    words = io.BytesIO()
    lines = ["a red circle on a blue background", "three green squares", "the yellow star in the corner"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=words, vocab_size=60, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=3,
    )  # fmt: skip
    (copy / "tokenizer_2" / "spiece.model").write_bytes(words.getvalue())
    marks = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    told = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 0} | marks
    (copy / "tokenizer_2" / "tokenizer_config.json").write_text(json.dumps(told))
    ids = load(spec(copy), CpuAccelerator()).tokenizer_2("a red circle").input_ids
    assert ids == [*sentencepiece.SentencePieceProcessor(model_proto=words.getvalue()).encode("a red circle"), 1]


def test_a_missing_folder_says_which() -> None:
    with pytest.raises(LoadError, match="/no/such/place does not exist"):
        locate(replace(TINY, source="/no/such/place"))


@pytest.fixture
def cached(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Hugging Face cache that holds the checkpoint as owner/tiny, offline."""
    repo = tmp_path / "hub" / "models--owner--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    (repo / "snapshots").mkdir()
    (repo / "snapshots" / ("0" * 40)).symlink_to(checkpoint)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return repo


def test_a_repository_is_taken_from_the_local_cache_offline(cached: Path) -> None:
    folder = locate(replace(TINY, source="owner/tiny"))
    assert (folder / "model_index.json").is_file()


def test_a_repository_that_is_not_cached_offline_says_how_to_get_it(cached: Path) -> None:
    with pytest.raises(LoadError, match="fluxserve pull owner/other"):
        locate(replace(TINY, source="owner/other"))


@pytest.mark.parametrize(
    ("error", "words"),
    [(GatedRepoError, "HF_TOKEN"), (RepositoryNotFoundError, "check the name"), (LocalEntryNotFoundError, "HF_HOME")],
)
def test_what_the_hub_answers_becomes_advice(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], words: str
) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise error.__new__(error)

    monkeypatch.setattr(checkpoint_files, "snapshot_download", refuse)
    with pytest.raises(LoadError, match=words) as caught:
        locate(replace(TINY, source="owner/tiny"))
    assert str(caught.value).count("\n") == 0


def test_a_copy_that_is_not_whole_is_not_taken_for_a_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    whole, copy_whole = REGISTRY["flux-shapes"], shutil.copyfile
    wanted = replace(whole, source="owner/tiny")

    def copy_half(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:100])

    monkeypatch.setattr(shutil, "copyfile", copy_half)
    with pytest.raises(LoadError):
        adopt(wanted, Path(whole.source))
    (half,) = tmp_path.glob("models--owner--tiny/snapshots/*")
    assert half.suffix == ".part"
    monkeypatch.setattr(shutil, "copyfile", copy_whole)
    assert (adopt(wanted, Path(whole.source)) / "model_index.json").is_file()


def test_unknown_architecture_and_quantization_name_the_known_ones() -> None:
    with pytest.raises(LoadError, match=r"random:FLUX\.1-dev"):
        load(replace(TINY, source="random:nothing"), CpuAccelerator())
    with pytest.raises(LoadError, match="none, fp8"):
        load(TINY, CpuAccelerator(), quantization="int3")


def test_devices_are_opened_by_name() -> None:
    assert open_accelerator("cpu").kind == "cpu"
    assert open_accelerator("auto").kind in ("cpu", "cuda")
    for wrong in ("tpu", "cuda:x", ""):
        with pytest.raises(DeviceError, match="unknown device"):
            open_accelerator(wrong)
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="cuda:0 is not here"):
            open_accelerator("cuda")
