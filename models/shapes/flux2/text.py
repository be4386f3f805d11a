"""The text encoder of flux2-shapes: a Qwen3 as deep as FLUX.2 reads, and a vocabulary of whole words."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from models.flux2.architectures import READ_LAYERS
from models.flux2.text_encoder import PromptEncoder
from models.shapes.text import Words
from models.shapes.tokens import T5_LENGTH, corpus, t5_tokenizer

WIDTH = 64
SEQUENCE_WIDTH = WIDTH * len(READ_LAYERS)
LAYERS = 6  # that learn; in the folder, layers that pass everything on make them as deep as FLUX.2 reads
# Nothing but the words: a model that reads 32 tokens has none to spare for roles.
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@dataclass
class KleinText:
    """The encoder and its tokenizer; `encode` is what Flux2KleinPipeline.encode_prompt does.

    A `models.shapes.text.Encoders` to whoever trains a flow: its pooled vector is a zero that nobody reads.
    """

    encoder: PromptEncoder
    tokenizer: PreTrainedTokenizerFast

    def encode(self, prompts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Pooled (B, 1) and sequence (B, length, SEQUENCE_WIDTH), padding included, as FLUX.2 has it."""
        return self.read(self.words(prompts, length))

    def words(self, prompts: Sequence[str], length: int) -> Words:
        """The prompts' token numbers, in the place of T5's."""
        words = self.tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return Words(torch.zeros(len(prompts), 1), words["input_ids"])

    def read(self, words: Words) -> tuple[Tensor, Tensor]:
        """Pooled and sequence of token numbers."""
        ids = words.t5.to(self.device)
        return words.clip.to(ids.device), states(self.encoder, ids)

    @property
    def device(self) -> torch.device:
        """Where the encoder is."""
        device: torch.device = self.encoder.device
        return device

    def on(self, device: torch.device) -> "KleinText":
        """The same, moved to a device."""
        self.encoder.to(device)
        return self


@dataclass
class KleinWords:
    """A `KleinText` whose encoder is elsewhere: the numbers of words stand in the place of their states."""

    text: KleinText

    def encode(self, prompts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Pooled (B, 1), of zeros, and token numbers (B, length)."""
        return self.read(self.words(prompts, length))

    def words(self, prompts: Sequence[str], length: int) -> Words:
        """The prompts' token numbers, in the place of T5's."""
        return self.text.words(prompts, length)

    def read(self, words: Words) -> tuple[Tensor, Tensor]:
        """What `encode` gives."""
        return words.clip.to(self.text.device), words.t5.to(self.text.device)


def states(encoder: PromptEncoder, ids: Tensor) -> Tensor:
    """What FLUX.2 is shown of token numbers (B, S): (B, S, SEQUENCE_WIDTH)."""
    layers = encoder(
        input_ids=ids,
        attention_mask=(ids != encoder.config.pad_token_id).long(),
        output_hidden_states=True,
        use_cache=False,
    ).hidden_states
    third = encoder.config.num_hidden_layers // 3
    return torch.cat([layers[third * i] for i in (1, 2, 3)], dim=-1)


def new_text() -> KleinText:
    """An untrained encoder for the vocabulary of the training captions."""
    words = t5_tokenizer(corpus())
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=T5_LENGTH,
        padding_side="right",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return KleinText(PromptEncoder(config(len(tokenizer), LAYERS)), tokenizer)


def config(words: int, layers: int = READ_LAYERS[-1]) -> Qwen3Config:
    """Of so many words and layers."""
    return Qwen3Config(
        vocab_size=words,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=WIDTH // 2,
        max_position_embeddings=T5_LENGTH,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )


def as_stock(encoder: PromptEncoder) -> Qwen3ForCausalLM:
    """What the stock pipeline opens: as deep as it reads, and one layer more, so that the norm comes after.

    The encoder's layers stand at the start of each third; the others add nothing.
    """
    whole = Qwen3ForCausalLM(config(encoder.config.vocab_size, READ_LAYERS[-1] + 1)).eval()
    whole.model.embed_tokens.load_state_dict(encoder.embed_tokens.state_dict())
    for layer in whole.model.layers:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    a_third = encoder.config.num_hidden_layers // 3
    for i, layer in enumerate(encoder.layers):
        whole.model.layers[i // a_third * READ_LAYERS[0] + i % a_third].load_state_dict(layer.state_dict())
    return whole
