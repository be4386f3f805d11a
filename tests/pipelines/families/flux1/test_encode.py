"""Prompt embeddings against the pipeline's, and the cache that keeps them."""

from __future__ import annotations

import pytest
import torch

from models.components import FluxComponents
from pipelines.families.flux1.encode import PromptEmbedding, encode_prompt
from pipelines.families.prompts import PromptCache
from pipelines.protocol import lookups


@pytest.mark.parametrize("prompt", ["", "a red circle", "ünïcödé " * 40])
def test_embeddings_are_those_of_the_pipeline(components: FluxComponents, prompt: str) -> None:
    with torch.inference_mode():
        ours = encode_prompt(components, prompt, 12, torch.clone)
        tokens, pooled, _ = components.pipeline().encode_prompt(prompt, max_sequence_length=12)
    assert torch.equal(ours.tokens, tokens[0])
    assert torch.equal(ours.pooled, pooled)


def embedding(floats: int) -> PromptEmbedding:
    return PromptEmbedding(torch.zeros(floats - 1), torch.zeros(1))


def test_the_cache_forgets_the_least_recently_used() -> None:
    hits, misses = lookups.counts().get("prompts", [0, 0])
    cache = PromptCache(max_bytes=40)
    cache.put("a", 1, embedding(5))
    cache.put("b", 1, embedding(5))
    assert cache.get("a", 1) is not None
    cache.put("c", 1, embedding(5))
    assert cache.get("b", 1) is None
    assert cache.get("a", 1) is not None
    assert cache.nbytes == 40
    assert lookups.counts()["prompts"] == [hits + 2, misses + 1]


def test_the_cache_tells_lengths_apart_and_keeps_its_bound() -> None:
    cache = PromptCache(max_bytes=40)
    cache.put("a", 1, embedding(5))
    assert cache.get("a", 2) is None
    cache.put("huge", 1, embedding(11))
    assert cache.get("huge", 1) is None
    cache.put("a", 1, embedding(5))
    assert cache.nbytes == 20
