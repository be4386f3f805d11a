"""What a single file needs beside it, and where that is. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from models.errors import LoadError
from models.files.gguf import brings_tokenizer
from models.single.contents import Header, Held, contents, what_it_is
from models.single.header import header_of
from models.single.search import companion, tokenizer_folder

_WORDS = {
    "transformer": "FLUX.1's transformer",
    "vae": "FLUX.1's VAE (ae.safetensors)",
    "text_encoder": "CLIP (clip_l.safetensors)",
    "text_encoder_2": "T5 (t5xxl_fp16.safetensors)",
    "tokenizer_2": "T5's tokenizer (a folder `tokenizer_2` with tokenizer.json or spiece.model; T5 as GGUF brings it)",
}
_CLIP = Path(__file__).parents[1] / "tokenizers" / "clip"
_PARTS, _TOKENIZERS = ("text_encoder", "text_encoder_2", "vae"), ("tokenizer", "tokenizer_2")


def held_part(name: str, file: Path) -> tuple[Header, Held]:
    """A file's header, and how it holds a part. Raises: LoadError if it does not."""
    header = header_of(file)
    held = contents(header).get(name)
    if held is None:
        raise LoadError(f"{file.name} holds {what_it_is(header)}, not {_WORDS[name]}.")
    return header, held


def companions(file: Path, folders: Sequence[Path]) -> tuple[dict[str, Path], dict[str, Path]]:
    """(files of the other parts, folders of the tokenizers), in the file, around it or in `folders`.

    CLIP's tokenizer is the one in this repository where there is no other; T5 as GGUF brings its own.

    Raises: LoadError naming what is missing.
    """
    own = contents(header_of(file))
    homes = {name: file if name in own else companion(name, file, folders) for name in _PARTS}
    tokenizers = {name: tokenizer_folder(name, file, folders) for name in _TOKENIZERS}
    t5 = homes["text_encoder_2"]
    if tokenizers["tokenizer_2"] is None and t5 is not None and brings_tokenizer(t5):
        tokenizers["tokenizer_2"] = t5
    tokenizers["tokenizer"] = tokenizers["tokenizer"] or _CLIP
    missing = [_WORDS[name] for name, where in (homes | tokenizers).items() if where is None]
    if missing:
        raise LoadError(
            f"{file.name} needs {'; '.join(missing)}, found neither beside it nor in --model-dir; "
            f"put them there, or take them from a folder: --model FLUX.1-dev --transformer {file.name}."
        )
    return _found(homes), _found(tokenizers)


def _found(places: dict[str, Path | None]) -> dict[str, Path]:
    return {name: place for name, place in places.items() if place is not None}
