"""FLUX architectures with random weights made on the device: for benchmarks and tests without a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from models.architectures import ARCHITECTURES
from models.building import vae_dtype
from models.components import FluxComponents
from models.construction import CONSTRUCTION
from models.errors import LoadError
from models.memory import Offload
from models.placement import place
from models.registry import ModelSpec

WEIGHT_STD = 0.02
_SEED = 20240801


def random_components(
    spec: ModelSpec,
    device: torch.device,
    dtype: torch.dtype,
    progress: Callable[[str, float], None],
    offload: Offload = "none",
) -> FluxComponents:
    """A complete FLUX with weights ~ N(0, 0.02): true shapes and speeds, meaningless pictures.

    Raises: LoadError for an unknown architecture.
    """
    if spec.source not in ARCHITECTURES:
        raise LoadError(f"unknown architecture {spec.source!r}: give one of {', '.join(ARCHITECTURES)}.")
    arch = ARCHITECTURES[spec.source]
    made = part_maker(device, dtype, progress, offload)
    return FluxComponents(
        spec=spec,
        text_encoder=made("text encoder", 0.0, lambda: CLIPTextModel(clip_config(arch.clip))),
        text_encoder_2=made("text encoder 2", 0.02, lambda: T5EncoderModel(_t5_config(arch.t5))),
        transformer=made("transformer", 0.3, lambda: FluxTransformer2DModel(**arch.transformer)),
        vae=made("vae", 0.98, lambda: AutoencoderKL(**arch.vae)),
        tokenizer=byte_tokenizer(arch.clip["max_position_embeddings"]),
        tokenizer_2=byte_tokenizer(spec.max_sequence_length),
        sigma_config=dict(arch.sigmas),
    )


def part_maker(
    device: torch.device, dtype: torch.dtype, progress: Callable[[str, float], None], offload: Offload
) -> Callable[[str, float, Callable[[], nn.Module]], Any]:
    """What makes one part after another: (stage in words, fraction done, constructor) -> its module with random
    weights, where it belongs."""
    generator = torch.Generator(device).manual_seed(_SEED)
    host = torch.device("cpu")

    def made(stage: str, fraction: float, build: Callable[[], nn.Module]) -> Any:
        progress(stage, fraction)
        home = host if stage == "transformer" and offload == "text+blocks" else device
        with _made_on(home, vae_dtype(dtype) if stage == "vae" else dtype):
            module = build()
        _randomise(module, generator if home == device else torch.Generator(home).manual_seed(_SEED))
        return place(stage.replace(" ", "_"), module, home, offload, runs_on=device)

    return made


@contextmanager
def _made_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Modules built inside are born on the device in the dtype: 24 GB are never held twice."""
    with CONSTRUCTION.making():
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                yield
        finally:
            torch.set_default_dtype(before)


def _randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Matrices and kernels from N(0, 0.02); norms stay 1, biases become 0."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, WEIGHT_STD, generator=generator)
        for part in module.modules():
            bias = getattr(part, "bias", None)
            if isinstance(bias, nn.Parameter):
                bias.zero_()


def clip_config(values: dict[str, Any], activation: str = "quick_gelu") -> CLIPTextConfig:
    """A CLIP text encoder of these sizes, with the special tokens that any word list has."""
    return CLIPTextConfig(**values, hidden_act=activation, bos_token_id=0, eos_token_id=1, pad_token_id=1)


def _t5_config(values: dict[str, Any]) -> T5Config:
    return T5Config(**values, dropout_rate=0.0, is_encoder_decoder=False, use_cache=False, eos_token_id=1)


def byte_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """One token a byte, after `<pad>` and `</s>`: enough for weights that mean nothing."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "</s>": 1} | {symbol: index + 2 for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", model_max_length=max_length
    )
