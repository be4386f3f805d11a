"""What a single file needs beside it, and where that is. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from models.errors import LoadError
from models.files.gguf import brings_tokenizer
from models.registry import Family
from models.single.contents import TRANSFORMERS, Header, Held, contents, variant_of, what_it_is
from models.single.header import header_of
from models.single.search import companion, tokenizer_folder

_WORDS: dict[Family, dict[str, str]] = {
    "flux": {
        "transformer": TRANSFORMERS["flux"],
        "text_encoder": "CLIP (clip_l.safetensors)",
        "text_encoder_2": "T5 (t5xxl_fp16.safetensors)",
        "vae": "FLUX.1's VAE (ae.safetensors)",
    },
    "flux2": {
        "transformer": TRANSFORMERS["flux2"],
        "text_encoder": "Qwen3 (qwen_3_4b.safetensors, or 8b for klein-9B)",
        "vae": "FLUX.2's VAE (flux2-vae.safetensors)",
        "tokenizer": "Qwen3's tokenizer (the folder `tokenizer` of FLUX.2-klein-4B)",
    },
}
_WHOLE = {"flux": "FLUX.1-dev", "flux2": "FLUX.2-klein-4B"}
SHIPPED = Path(__file__).parents[1] / "tokenizers"
_PARTS = {"flux": ("text_encoder", "text_encoder_2", "vae"), "flux2": ("text_encoder", "vae")}
_TOKENIZERS = {"flux": ("tokenizer", "tokenizer_2"), "flux2": ("tokenizer",)}


def held_part(name: str, file: Path, family: Family = "flux") -> tuple[Header, Held]:
    """A file's header, and how it holds a part. Raises: LoadError if it does not."""
    header = header_of(file)
    held = contents(header).get(name)
    if held is None or held.family != family:
        raise LoadError(f"{file.name} holds {what_it_is(header)}, not {_WORDS[family][name]}.")
    return header, held


def companions(file: Path, folders: Sequence[Path]) -> tuple[dict[str, Path], dict[str, Path]]:
    """(files of the other parts, folders of the tokenizers), in the file, around it or in `folders`.

    T5 as GGUF brings its tokenizer; where there is no other, CLIP's and T5's are those in this repository.

    Args: file: that holds a transformer. Raises: LoadError naming what is missing.
    """
    own = contents(header_of(file))
    if variant_of(header_of(file), file.name) in ("flux2-dev", "flux2-turbo"):
        raise LoadError(
            f"{file.name} holds FLUX.2 [dev]'s transformer alone; take the rest from a folder: "
            f"--model FLUX.2-dev --transformer {file.name}."
        )
    family = own["transformer"].family
    homes = {name: file if name in own else companion(name, file, folders) for name in _PARTS[family]}
    tokenizers = {name: tokenizer_folder(family, name, file, folders) for name in _TOKENIZERS[family]}
    if family == "flux":
        t5 = homes["text_encoder_2"]
        if tokenizers["tokenizer_2"] is None and t5 is not None and brings_tokenizer(t5):
            tokenizers["tokenizer_2"] = t5
        tokenizers["tokenizer"] = tokenizers["tokenizer"] or SHIPPED / "clip"
        tokenizers["tokenizer_2"] = tokenizers["tokenizer_2"] or SHIPPED / "t5"
    missing = [_WORDS[family][name] for name, where in (homes | tokenizers).items() if where is None]
    if missing:
        raise LoadError(
            f"{file.name} needs {'; '.join(missing)}, found neither beside it nor in --model-dir; "
            f"put them there, or take them from a folder: --model {_WHOLE[family]} --transformer {file.name}."
        )
    return _found(homes), _found(tokenizers)


def _found(places: dict[str, Path | None]) -> dict[str, Path]:
    return {name: place for name, place in places.items() if place is not None}
