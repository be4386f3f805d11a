"""Tokenizers for single files, which bring none: from this repository, T5's also from its GGUF file."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import gguf
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from models.accelerator import CpuAccelerator
from models.arguments import resolve
from models.components import FluxComponents
from models.loading import load
from models.part import tokenizer
from models.single.companions import companions
from tests.models.single.conftest import FLUX
from tests.models.single.test_t5_gguf import llama_cpp
from tests.models.single.writers import all_in_one, bfl, ldm_vae, write

SHIPPED = Path(__file__).parents[3] / "models" / "tokenizers"
TEXT = ["a red circle on a blue ground", "two   squares, a circle!", "zebra"]


def test_clips_own_numbers_of_a_prompt() -> None:
    words = tokenizer(SHIPPED / "clip")
    assert words("a photo of a cat")["input_ids"] == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert words("A Diagram!", padding="max_length", max_length=7)["input_ids"] == [
        49406,
        320,
        22697,
        256,
        *[49407] * 3,
    ]
    assert (len(words), words.model_max_length) == (49408, 77)


def test_t5s_own_numbers_of_a_prompt() -> None:
    """Known from T5's first task prefix; the file is Google's byte for byte."""
    words = tokenizer(SHIPPED / "t5")
    assert words("translate English to German: The house is wonderful.")["input_ids"] == [
        *[13959, 1566, 12, 2968, 10],
        *[37, 629, 19, 1627, 5, 1],
    ]
    assert words("Hello world", padding="max_length", max_length=6)["input_ids"] == [8774, 296, 1, 0, 0, 0]
    assert (len(words), words.model_max_length) == (32100, 512)
    digest = sha256((SHIPPED / "t5" / "spiece.model").read_bytes()).hexdigest()
    assert digest == "d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86"


@pytest.fixture(scope="module")
def unigram() -> PreTrainedTokenizerFast:
    """T5's kind of tokenizer, trained on a few words."""
    trained = Tokenizer(models.Unigram())
    split = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    trained.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), split])
    special = ["<pad>", "</s>", "<unk>"]
    trained.train_from_iterator(TEXT, trainers.UnigramTrainer(vocab_size=40, special_tokens=special, unk_token="<unk>"))
    trained.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    trained.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return PreTrainedTokenizerFast(
        tokenizer_object=trained, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", padding_side="right"
    )


def write_t5(file: Path, narrow: FluxComponents, unigram: PreTrainedTokenizerFast) -> None:
    """The encoder in float32 with its vocabulary, as llama.cpp writes them."""
    writer = gguf.GGUFWriter(file, "t5encoder")
    vocabulary = json.loads(unigram.backend_tokenizer.to_str())["model"]["vocab"]
    writer.add_tokenizer_model("t5")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_scores([score for _, score in vocabulary])
    for name, tensor in narrow.text_encoder_2.state_dict().items():
        if not name.endswith("embed_tokens.weight"):
            writer.add_tensor(llama_cpp(name), tensor.float().numpy())
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()


@pytest.fixture(scope="module")
def wordy(narrow: FluxComponents) -> FluxComponents:
    """With a CLIP that has a row for each of its 49,408 words."""
    torch.manual_seed(4)
    widths = {"hidden_size": 64, "intermediate_size": 128, "projection_dim": 64, "num_hidden_layers": 2}
    clip = CLIPTextModel(CLIPTextConfig(**FLUX.clip | widths | {"num_attention_heads": 1}, hidden_act="quick_gelu"))
    return replace(narrow, text_encoder=clip.eval().requires_grad_(False))


def test_files_alone_are_enough_where_t5_is_a_gguf_file(
    wordy: FluxComponents, unigram: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    clip = {f"text_model.{n.removeprefix('text_model.')}": t for n, t in wordy.text_encoder.state_dict().items()}
    file = write(tmp_path / "flux.safetensors", bfl(wordy.transformer.state_dict()))
    write(tmp_path / "ae.safetensors", ldm_vae(wordy.vae.state_dict(), 4))
    write(tmp_path / "clip_l.safetensors", clip)
    write_t5(tmp_path / "t5.gguf", wordy, unigram)
    loaded = load(resolve(str(file)), CpuAccelerator())
    for text in TEXT:
        ours = loaded.tokenizer_2(text, padding="max_length", max_length=16, truncation=True)["input_ids"]
        assert ours == unigram(text, padding="max_length", max_length=16, truncation=True)["input_ids"]
    assert len(loaded.tokenizer) == 49408


def test_an_all_in_one_needs_nothing_beside_it_and_takes_the_operators_tokenizer_first(
    wordy: FluxComponents, narrow_folder: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "models" / "everything.safetensors", all_in_one(wordy))
    _, alone = companions(file, [])
    assert alone == {"tokenizer": SHIPPED / "clip", "tokenizer_2": SHIPPED / "t5"}
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "tokenizer_2").symlink_to(narrow_folder / "tokenizer_2")
    _, tokenizers = companions(file, [tmp_path / "own"])
    assert tokenizers == alone | {"tokenizer_2": tmp_path / "own" / "tokenizer_2"}
    loaded = load(resolve(str(file), [tmp_path / "own"]), CpuAccelerator())
    assert loaded.tokenizer("a photo")["input_ids"] == [49406, 320, 1125, 49407]
