"""What files given as --model and --transformer are taken for, whatever they are called and wherever they lie."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch

from models.accelerator import CpuAccelerator
from models.arguments import UnknownModelError, resolve
from models.components import FluxComponents
from models.errors import LoadError
from models.first_look import first_look
from models.loading import load
from models.single.companions import companions
from tests.models.single.writers import bfl, ldm_vae, write, write_gguf


@pytest.fixture(scope="module")
def file(narrow: FluxComponents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("files") / "mine.safetensors", bfl(narrow.transformer.state_dict()))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("gone.safetensors", "there is no gone.safetensors"),
        ("mine.safetensor", "there is no mine.safetensor; did you mean mine.safetensors?"),
        ("folder", "folder is a folder; --transformer takes a file, and --model a folder"),
        ("folder.safetensors", "folder.safetensors is a folder; --transformer takes"),
        ("link.safetensors", "link.safetensors is a link to nowhere.safetensors, which is not there"),
        ("pipe.safetensors", "pipe.safetensors is no file with weights"),
        ("", "--transformer needs a file"),
        ("~nobody-of-that-name/x.safetensors", "there is no ~nobody-of-that-name/x.safetensors"),
    ],
)
def test_what_is_no_file_is_said_in_one_sentence(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(file, tmp_path)
    Path("folder").mkdir()
    Path("folder.safetensors").mkdir()
    Path("link.safetensors").symlink_to("nowhere.safetensors")
    os.mkfifo("pipe.safetensors")
    with pytest.raises(UnknownModelError) as caught:
        resolve(f"flux-shapes+{given}")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("./link", "./link is a link to nowhere, which is not there"),
        ("./loop", "./loop is a link to loop, which is not there"),
        ("./pipe", "./pipe is neither a file nor a folder"),
        ("", "unknown model ''"),
        ("./" + "a" * 300, "there is no ./aaa"),
        ("~nobody-of-that-name/x", "there is no ~nobody-of-that-name/x"),
        ("./a+b.safetensors", "there is no ./a+b.safetensors"),
        ("flux-shpes+mine.safetensors", "did you mean flux-shapes?"),
    ],
)
def test_what_is_no_model_is_said_in_one_sentence(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(file, tmp_path)
    Path("link").symlink_to("nowhere")
    Path("loop").symlink_to("loop")
    os.mkfifo("pipe")
    with pytest.raises(UnknownModelError) as caught:
        resolve(given)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["a+b.safetensors", "with spaces.safetensors", "ünï.safetensors", "no-ending", "a=b"])
def test_a_files_name_may_be_any(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(file, tmp_path / name)
    for argument in (f"flux-shapes+{name}", f"mine=flux-shapes+{tmp_path / name}"):
        assert resolve(argument).file == tmp_path / name
    assert resolve(name).variant == "dev"


def test_a_file_in_a_hugging_face_cache_keeps_its_name(file: Path, tmp_path: Path) -> None:
    """Its links lead to files without an ending, called by a hash."""
    blob = tmp_path / "blobs" / ("5f" * 32)
    snapshot = tmp_path / "snapshots" / "abc" / "flux1-dev.safetensors"
    for place in (blob, snapshot):
        place.parent.mkdir(parents=True)
    shutil.copy(file, blob)
    snapshot.symlink_to(blob)
    spec = resolve(str(snapshot))
    assert (spec.name, spec.file, spec.variant) == ("flux1-dev", snapshot, "dev")
    assert resolve(f"flux-shapes+{snapshot}").name == "flux-shapes+flux1-dev"


def test_gguf_is_known_by_its_first_bytes(narrow: FluxComponents, narrow_folder: Path, tmp_path: Path) -> None:
    state = bfl(narrow.transformer.state_dict())
    named = write_gguf(tmp_path / "mine.gguf", state, gguf.GGMLQuantizationType.Q8_0)
    for name in ("blob", "mine.safetensors"):
        shutil.copy(named, tmp_path / name)
        loaded, expected = (
            load(resolve(f"x={narrow_folder}+{each}"), CpuAccelerator()) for each in (tmp_path / name, named)
        )
        ours, theirs = (each.transformer.transformer_blocks[0].attn.to_q.weight for each in (loaded, expected))
        assert torch.equal(ours.unpack(torch.float32), theirs.unpack(torch.float32))


def test_a_file_is_not_taken_for_another_kind_than_its_tensors_say(narrow: FluxComponents, tmp_path: Path) -> None:
    state = bfl(narrow.transformer.state_dict())
    fill = write(tmp_path / "flux1-dev.safetensors", state | {"img_in.weight": torch.zeros(256, 384)})
    dev = write(tmp_path / "other.safetensors", state)
    for argument in (f"FLUX.1-dev={fill}", f"FLUX.1-Canny-dev={fill}", f"FLUX.1-Fill-dev={dev}"):
        with pytest.raises(UnknownModelError, match=r"the weights in .* are of the kind (fill|dev), but FLUX.1-"):
            resolve(argument)
    assert resolve(f"FLUX.1-Fill-dev={fill}").variant == "fill"
    assert resolve(f"FLUX.1-Krea-dev={dev}").variant == "krea"
    assert resolve("FLUX.1-Fill-dev=owner/my-own").variant == "fill"  # what a repository holds is not known yet


def test_a_controlnet_is_no_transformer(narrow: FluxComponents, tmp_path: Path) -> None:
    state = bfl(narrow.transformer.state_dict()) | {"controlnet_blocks.0.weight": torch.zeros(4, 4)}
    with pytest.raises(LoadError, match="holds a ControlNet"):
        first_look(resolve(str(write(tmp_path / "x.safetensors", state))))


def test_what_lies_beside_a_file_and_cannot_be_read_is_passed_over(
    file: Path, tmp_path: Path, narrow_folder: Path
) -> None:
    shutil.copy(file, tmp_path)
    (tmp_path / "clip_l.safetensors").symlink_to("nowhere")
    (tmp_path / "folder.safetensors").mkdir()
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(LoadError, match=r"needs CLIP \(clip_l.safetensors\); T5"):
        first_look(resolve(str(tmp_path / "mine.safetensors")))


def test_tokenizers_are_found_inside_the_models_folder_of_a_tree(
    file: Path, tmp_path: Path, narrow_folder: Path
) -> None:
    shutil.copytree(narrow_folder / "tokenizer_2", tmp_path / "ComfyUI" / "models" / "tokenizer_2")
    with pytest.raises(LoadError) as caught:
        first_look(resolve(str(file), [tmp_path / "ComfyUI"]))
    assert "needs CLIP" in str(caught.value)
    assert "tokenizer" not in str(caught.value)


def test_of_a_full_tree_those_that_fit_the_transformer_are_taken(
    narrow: FluxComponents, narrow_folder: Path, tmp_path: Path
) -> None:
    """ComfyUI's folders hold the text encoders and VAEs of every model that somebody has tried."""
    root = tmp_path / "models"
    file = write(root / "unet" / "mine.safetensors", bfl(narrow.transformer.state_dict()))
    clip = {f"text_model.{n.removeprefix('text_model.')}": t for n, t in narrow.text_encoder.state_dict().items()}
    vae, t5 = ldm_vae(narrow.vae.state_dict(), 4), narrow.text_encoder_2.state_dict()
    of_flux1 = {
        "text_encoder": write(root / "clip" / "clip_l.safetensors", clip),
        "text_encoder_2": write(root / "clip" / "t5xxl.safetensors", t5),
        "vae": write(root / "vae" / "ae.safetensors", vae),
    }
    # Larger ones, of SDXL (CLIP G, 4 latents), Wan (UMT5) and FLUX.2 (32 latents, statistics of them).
    more = {"more": torch.zeros(1_000_000)}
    position = "text_model.embeddings.position_embedding.weight"
    write(root / "clip" / "clip_g.safetensors", clip | more | {position: torch.zeros(77, 128)})
    bias = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
    write(root / "text_encoders" / "umt5_xxl.safetensors", t5 | more | {bias: torch.zeros(32, 4)})
    write(root / "vae" / "sdxl_vae.safetensors", vae | more | {"decoder.conv_in.weight": torch.zeros(64, 4, 3, 3)})
    write(root / "vae" / "flux2-vae.safetensors", vae | more | {"bn.running_mean": torch.zeros(128)})
    (tmp_path / "tokenizer_2").symlink_to(narrow_folder / "tokenizer_2")
    assert companions(file, [tmp_path])[0] == of_flux1


@pytest.mark.parametrize(
    "change", [Path.unlink, lambda file: os.truncate(file, file.stat().st_size - 100)], ids=["gone", "cut short"]
)
def test_a_file_that_changes_while_it_is_loaded_is_one_sentence(
    file: Path, narrow_folder: Path, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    mine = tmp_path / "mine.safetensors"
    shutil.copy(file, mine)
    changes = iter([change])

    def progress(stage: str, fraction: float) -> None:  # looked at already, not read yet
        next(changes, lambda file: None)(mine)

    with pytest.raises(LoadError, match=r"narrow-flux cannot be read \(|is cut short or damaged") as caught:
        load(resolve(f"{narrow_folder}+{mine}"), CpuAccelerator(), progress=progress)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
