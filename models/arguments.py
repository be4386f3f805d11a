"""What a `--model` argument means: a name of the registry, a folder, a file, a Hugging Face id, or NAME=one of these.

`MODEL+FILE` is a model with the transformer of a single file, or with a LoRA worked into it (of FLUX.2; both may be
given, one after the other); `fake:` stands for no model at all (see `models.fake`).
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.errors import LoadError
from models.fake import PREFIX as FAKE
from models.fake import fake_spec
from models.files.folder import (
    FLUX2_DEV,
    FLUX2_PIPELINES,
    FLUX3_PIPELINES,
    SDXL_PIPELINES,
    index_in,
    is_distilled,
    part_in,
)
from models.files.paths import exists, has_near, typed, why_absent
from models.registry import REGISTRY, UNLISTED, ModelSpec, Variant, flux2_dev, klein
from models.single.contents import contents, variant_of
from models.single.header import header_of
from models.single.sdxl import lightning_steps, sdxl_variant
from models.single.search import find_file

WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".sft", ".ckpt", ".pt", ".pth", ".bin")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SCHNELL_TOKENS, _SCHNELL_STEPS = 256, 4
_PIPELINES: dict[str, Variant] = {
    "FluxKontextPipeline": "kontext",
    "FluxFillPipeline": "fill",
    "FluxPriorReduxPipeline": "redux",
}
_SHAPED: tuple[Variant, ...] = (
    "schnell", "fill", "redux", "controlnet", "depth-estimator", "klein-4b", "klein-9b", "klein-base-4b",
    "klein-base-9b", "flux3-klein", "flux3-klein-base",
)  # fmt: skip
_NAMES: tuple[Variant, ...] = ("schnell", "krea", "srpo", "kontext", "fill", "redux", "canny", "depth", "controlnet")


_HEADS_OF_4B = 24
_LIGHTNING_STEPS = 4
_TURBO_STEPS, _TURBO_GUIDANCE, _DEV2_GUIDANCE = 8, 2.5, 4.0
_DEFAULTS = {row.variant: row for row in REGISTRY.values() if row.family in ("flux3", "sdxl")}
_KLEIN_STEPS, _KLEIN_BASE_STEPS, _KLEIN_BASE_GUIDANCE = 4, 50, 4.0


class UnknownModelError(ValueError):
    """The argument names no model; the message is one sentence that says what was meant, or what may be given."""


def resolve(argument: str, folders: Sequence[Path] = ()) -> ModelSpec:
    """The spec that one `--model` argument means.

    A path (it begins with `.`, `/` or `~`, or exists and is no bare registry name) is what lies there. `NAME=...`
    gives it that name; a name of the registry brings that row's variant and defaults.

    Args: folders: where files are sought that are given by name alone, and the companions of single files.
    Raises: UnknownModelError.
    """
    if argument.startswith(FAKE):
        return _fake(argument)
    name, equals, rest = argument.partition("=")
    if rest.startswith(FAKE):
        raise UnknownModelError(f"--model {argument!r}: what only pretends is called fake; give {rest} alone")
    if not equals or exists(argument) or _pair(argument, folders)[0] in REGISTRY:
        return _with_file(argument, folders)
    if not _NAME.fullmatch(name):
        raise UnknownModelError(
            f"--model {argument!r}: in NAME=PATH the name may hold letters, digits, dots, hyphens and underscores"
        )
    found = _with_file(rest, folders)
    if name not in REGISTRY:
        return replace(found, name=name)
    declared = REGISTRY[name]
    if _is_told(found) and (found.family, _shape(found)) != (declared.family, _shape(declared)):
        raise UnknownModelError(
            f"--model {argument!r}: the weights in {rest} are of the kind {found.variant}, "
            f"but {name} is {declared.variant}: give the name of that kind"
        )
    return replace(
        declared,
        source=found.source,
        revision=found.revision,
        transformer=found.transformer,
        adapter=found.adapter,
        folders=found.folders,
    )


def resolve_all(arguments: Iterable[str], folders: Sequence[Path] = ()) -> tuple[ModelSpec, ...]:
    """The specs of several arguments; what is given twice counts once. Args: folders: see `resolve`.

    Raises: UnknownModelError, also if two different models would have one name.
    """
    specs: dict[str, ModelSpec] = {}
    for argument in arguments:
        spec = resolve(argument, folders)
        other = specs.setdefault(spec.name, spec)
        if other != spec:
            raise UnknownModelError(
                f"two models have the name {spec.name}: {other.source} and {spec.source}; "
                f"give one another name with --model NAME={spec.source}"
            )
    if len(specs) > 1 and any(spec.is_fake for spec in specs.values()):
        raise UnknownModelError("--model fake: answers every endpoint by itself, and stands beside no other model")
    return tuple(specs.values())


def _fake(argument: str) -> ModelSpec:
    try:
        return fake_spec(argument)
    except ValueError as exc:
        raise UnknownModelError(str(exc)) from exc


def _is_told(found: ModelSpec) -> bool:
    """Whether files told what it is for, not a name."""
    return found.file is not None or index_in(Path(found.source)).is_file()


def _shape(spec: ModelSpec) -> str:
    """Variants of one shape differ by nothing that files could tell."""
    return "control" if spec.variant in ("canny", "depth") else spec.variant if spec.variant in _SHAPED else "dev"


def _with_file(argument: str, folders: Sequence[Path]) -> ModelSpec:
    """What stands behind `NAME=`: a model, `MODEL+FILE`, or one with a transformer and a LoRA."""
    base, name = _pair(argument, folders)
    if name is None:
        return _meant(argument, folders)
    spec, file = _with_file(base, folders), _file(name, folders)
    if file is None:
        raise UnknownModelError(_no_file(name))
    is_adapter = spec.family == "flux2" and is_lora(file)
    if (spec.adapter if is_adapter else spec.transformer) is not None:
        what = "a LoRA that is worked in" if is_adapter else "another file's transformer"
        raise UnknownModelError(f"--model {argument!r}: {base} has {what} already, so {file.name} cannot be added")
    if is_adapter:
        return _of_adapter(replace(spec, name=f"{spec.name}+{file.stem}", adapter=str(file)))
    if spec.family == "sdxl":
        return _of_unet(replace(spec, name=f"{spec.name}+{file.stem}", transformer=str(file)))
    return _of_adapter(_of_file(replace(spec, name=f"{spec.name}+{file.stem}", transformer=str(file))))


def is_lora(file: Path) -> bool:
    """Whether a file holds low-rank matrices and no model, by its names."""
    try:
        header = header_of(file)
    except LoadError:
        return False
    return "transformer" not in contents(header) and any("lora" in name.lower() for name in header)


def _of_adapter(spec: ModelSpec) -> ModelSpec:
    """FLUX.2 with a LoRA worked in, if it has one: whether that makes few steps enough, only its name says."""
    if spec.adapter is None or spec.variant != "flux2-dev" or flux2_dev(Path(spec.adapter).name) == spec.variant:
        return spec
    return _with_defaults(replace(spec, variant="flux2-turbo"))


def _pair(argument: str, folders: Sequence[Path]) -> tuple[str, str | None]:
    """MODEL and FILE of `MODEL+FILE`; no FILE if it is none. Paths may hold a `+` as well."""
    cuts = [] if exists(argument) else [match.start() for match in re.finditer(r"\+", argument)]
    pairs = [(argument[:cut], argument[cut + 1 :]) for cut in cuts]
    whole = [pair for pair in pairs if _file(pair[1], folders)]
    likely = [pair for pair in pairs if _may_be_model(pair[0])]
    return next(iter((*whole, *likely)), (argument, None))


def _may_be_model(text: str) -> bool:
    return text in REGISTRY or text in UNLISTED or exists(text) or ("/" in text and not _is_path(text))


def _file(name: str, folders: Sequence[Path]) -> Path | None:
    path = os.path.expanduser(name)
    return typed(name) if os.path.isfile(path) else find_file(name, folders)


def _no_file(name: str) -> str:
    if not name:
        return "--transformer needs a file"
    if not exists(name):
        return why_absent(name)
    if typed(name).is_dir():
        return f"{name} is a folder; --transformer takes a file, and --model a folder"
    return f"{name} is no file with weights"


def _of_file(spec: ModelSpec) -> ModelSpec:
    """With the variant and defaults that its file asks for; what is wrong with the file, loading says."""
    assert spec.file is not None
    try:
        header = header_of(spec.file)
    except LoadError:
        return spec
    if spec.transformer is None and (sdxl := sdxl_variant(header, spec.file.name)) is not None:
        return _with_defaults(replace(spec, variant=sdxl))
    variant = variant_of(header, spec.file.name)
    if variant is None or variant == spec.variant:
        return spec
    if variant.startswith(("klein", "flux2")):
        return _with_defaults(replace(spec, variant=variant)) if spec.transformer is None else _of_flux2(spec, variant)
    if spec.family != "flux":
        return spec
    row = next(row for row in REGISTRY.values() if row.variant == variant and row.name.startswith("FLUX.1"))
    return replace(
        spec,
        variant=variant,
        default_steps=row.default_steps,
        default_guidance=row.default_guidance,
        max_sequence_length=min(spec.max_sequence_length, row.max_sequence_length),
    )


def _of_flux2(spec: ModelSpec, variant: Variant) -> ModelSpec:
    """A FLUX.2 with another transformer: shapes tell its size; a base model stays one, for nothing tells that."""
    if spec.family != "flux2":
        return spec
    if not variant.startswith("klein"):
        return _with_defaults(replace(spec, variant=variant))
    is_base = "base" in spec.variant or "base" in variant
    return _with_defaults(replace(spec, variant=klein(is_base, is_large=variant.endswith("9b"))))


def _of_unet(spec: ModelSpec) -> ModelSpec:
    """SDXL with another UNet: what it is for, only its name says. As published: sdxl_lightning_4step_unet."""
    name = Path(str(spec.transformer)).name.lower()
    if "lightning" not in name:
        return spec
    return _with_lightning_steps(replace(spec, variant="lightning", default_guidance=1.0), name)


def _with_lightning_steps(spec: ModelSpec, name: str) -> ModelSpec:
    """Those that a name says, if it is distilled. Without a number in it, it is taken to draw in any."""
    if spec.variant != "lightning":
        return spec
    steps = lightning_steps(name)
    return replace(spec, default_steps=steps or _LIGHTNING_STEPS, distilled_steps=steps)


def _meant(argument: str, folders: Sequence[Path]) -> ModelSpec:
    known = REGISTRY.get(argument) or UNLISTED.get(argument)
    if known is not None:
        return known
    if exists(argument):
        return _local(argument, folders)
    if argument.endswith(WEIGHT_SUFFIXES) and (found := find_file(argument, folders)) is not None:
        return _local(str(found), folders)
    by_source = {spec.source: spec for spec in REGISTRY.values()}
    if argument in by_source:
        return by_source[argument]
    if _is_path(argument):
        raise UnknownModelError(why_absent(argument))
    if argument.count("/") == 1 and all(argument.split("/")):
        name = argument.split("/")[1]
        told = (_named_flux3, _named_klein, _named_flux2_dev, _named_sdxl)
        variant = next((named for read in told if (named := read(name))), None) or _variant("", name, {})
        return _with_defaults(ModelSpec(name=name, source=argument, variant=variant))
    close = difflib.get_close_matches(argument, REGISTRY, 1)
    meant = f"did you mean {close[0]}? Else give" if close else "give"
    raise UnknownModelError(
        f"unknown model {argument!r}: {meant} one of {', '.join(REGISTRY)}, a folder with a model_index.json, "
        "or a Hugging Face id such as owner/repo"
    )


def _local(argument: str, folders: Sequence[Path]) -> ModelSpec:
    """What lies here; what is wrong with it, loading says."""
    path = typed(argument)
    if path.is_file():
        return _of_file(ModelSpec(path.stem, str(path), folders=tuple(str(folder) for folder in folders)))
    if not path.is_dir():
        raise UnknownModelError(f"{argument} is neither a file nor a folder")
    path = path.resolve()
    index, config = read_object(index_in(path)), read_object(part_in(path, "transformer") / "config.json")
    class_name = str(index.get("_class_name", ""))
    if class_name in SDXL_PIPELINES:
        variant = _sdxl(path)
    elif class_name == FLUX2_DEV:
        variant = flux2_dev(path.name)
    elif class_name in FLUX3_PIPELINES:
        variant = "flux3-klein" if config.get("flow_map", False) else "flux3-klein-base"
    elif class_name in FLUX2_PIPELINES:
        variant = klein(is_base=not is_distilled(index), is_large=_is_large(config))
    else:
        variant = _variant(class_name, path.name, config)
    return _with_defaults(ModelSpec(name=path.name, source=str(path), variant=variant))


def _variant(class_name: str, name: str, config: dict[str, Any]) -> Variant:
    """What a checkpoint is for, from its pipeline's class and its transformer's config; only then from its name."""
    if class_name in _PIPELINES:
        return _PIPELINES[class_name]
    named: Variant = next((variant for variant in _NAMES if variant in name.lower()), "dev")
    if class_name.startswith("FluxControl") and not class_name.startswith("FluxControlNet"):
        return "depth" if named == "depth" else "canny"
    if class_name == "FluxPipeline" and config:
        is_schnell = not config.get("guidance_embeds", False)
        return "schnell" if is_schnell else ("dev" if named == "schnell" else named)
    return named


def _sdxl(folder: Path) -> Variant:
    """What a folder of SDXL is for: Playground's schedule is its own; Lightning's UNet only its name tells."""
    scheduler = read_object(part_in(folder, "scheduler") / "scheduler_config.json")
    if str(scheduler.get("_class_name", "")).startswith("EDM"):
        return "playground"
    return _named_sdxl(folder.name) or "sdxl"


def _named_sdxl(name: str) -> Variant | None:
    """The SDXL that a name speaks of, if it does."""
    words = name.lower()
    if "playground-v2.5" in words:
        return "playground"
    if "sdxl" not in words and "diffusion-xl" not in words:
        return None
    return "lightning" if "lightning" in words else "sdxl"


def _named_flux2_dev(name: str) -> Variant | None:
    words = name.lower().replace("-", "").replace("_", "").replace(".", "")
    return flux2_dev(name) if "flux2dev" in words else None


def _named_flux3(name: str) -> Variant | None:
    """The FLUX.3 that a repository's name speaks of, if it does."""
    words = name.lower().replace("-", "").replace("_", "").replace(".", "")
    return None if "flux3" not in words else "flux3-klein-base" if "base" in words else "flux3-klein"


def _named_klein(name: str) -> Variant | None:
    """The FLUX.2 [klein] that a repository's name speaks of, if it does."""
    words = name.lower()
    if "klein" not in words:
        return None
    return klein(is_base="base" in words, is_large="9b" in words)


def _is_large(transformer: dict[str, Any]) -> bool:
    """Whether this is the wider of the two sizes."""
    heads = transformer.get("num_attention_heads")
    return isinstance(heads, int) and heads > _HEADS_OF_4B


def _with_defaults(spec: ModelSpec) -> ModelSpec:
    if spec.variant.startswith("klein"):
        is_base = "base" in spec.variant
        return replace(
            spec,
            family="flux2",
            default_steps=_KLEIN_BASE_STEPS if is_base else _KLEIN_STEPS,
            default_guidance=_KLEIN_BASE_GUIDANCE if is_base else 1.0,
        )
    if spec.variant in ("flux2-dev", "flux2-turbo"):
        is_turbo = spec.variant == "flux2-turbo"
        steps, guidance = (_TURBO_STEPS, _TURBO_GUIDANCE) if is_turbo else (spec.default_steps, _DEV2_GUIDANCE)
        return replace(spec, family="flux2", default_steps=steps, default_guidance=guidance)
    if spec.variant in _DEFAULTS:
        row = _DEFAULTS[spec.variant]
        kept = {name: getattr(row, name) for name in ("family", "max_sequence_length", "max_pixels")}
        usual = replace(spec, default_steps=row.default_steps, default_guidance=row.default_guidance, **kept)
        return _with_lightning_steps(usual, spec.name)
    if spec.variant != "schnell":
        return spec
    return replace(spec, max_sequence_length=_SCHNELL_TOKENS, default_steps=_SCHNELL_STEPS)


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file, empty if there is none: whoever needs it says what is wrong with it."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_path(argument: str) -> bool:
    """Whether what does not exist can only have been meant as a path."""
    if argument.startswith((".", "/", "~")) or argument.endswith(WEIGHT_SUFFIXES) or argument.count("/") > 1:
        return True
    return "/" in argument and has_near(argument)
