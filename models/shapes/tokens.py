"""The two vocabularies: byte-pair for CLIP, whole words by hand-set weights for T5, in the stock classes."""

import json
import random
import re
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer, T5Tokenizer

from models.shapes.captions import caption
from models.shapes.scenes import random_scene

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
CLIP_LENGTH = 77
T5_LENGTH = 512
CLIP_VOCABULARY = 1024
_EXTRA_WORDS = ("without", "no", "not", "scene", "shape", "shapes", "colour", "color", "up", "down", "middle", "side")


def corpus(count: int = 20_000, seed: int = 7) -> list[str]:
    """Captions of the training side: all that the vocabularies are made from."""
    rng = random.Random(seed)
    return [caption(random_scene(rng), rng) for _ in range(count)]


def clip_tokenizer(texts: list[str]) -> CLIPTokenizer:
    """A lower-casing byte-pair tokenizer learned from `texts`; every byte is in it, so any text can be read."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=EOS))
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")  # CLIP's own
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=CLIP_VOCABULARY - 256,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(alphabet),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    state = json.loads(learner.to_str())["model"]
    vocabulary: dict[str, int] = state["vocab"]
    for letter in sorted(alphabet):
        vocabulary.setdefault(letter + "</w>", len(vocabulary))
    merges = [tuple(merge) for merge in state["merges"]]
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        unk_token=EOS,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=CLIP_LENGTH,
    )


def t5_tokenizer(texts: list[str]) -> T5Tokenizer:
    """A Unigram tokenizer of whole words (as written, capitalised, in capitals) over printable ASCII letters."""
    words = sorted({word for text in texts for word in re.findall(r"[a-z0-9'-]+", text.lower())} | set(_EXTRA_WORDS))
    forms = dict.fromkeys(form for word in words for form in (word, word.capitalize(), word.upper()) if len(word) > 1)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -5.0)]
    pieces += [("▁" + form, -3.0) for form in forms]
    pieces += [(chr(code), -8.0) for code in range(33, 127)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=T5_LENGTH)


def load_tokenizers(folder: Path) -> tuple[CLIPTokenizer, T5Tokenizer]:
    """Both tokenizers from a pipeline folder."""
    return CLIPTokenizer.from_pretrained(folder / "tokenizer"), T5Tokenizer.from_pretrained(folder / "tokenizer_2")
