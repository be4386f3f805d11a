"""What the Redux sibling learns from: words at the tokens of their roles, counted tokens, and what covers a patch."""

import math
import random

import pytest
import torch

from models.shapes.attention import make_lean
from models.shapes.captions import plain_caption
from models.shapes.draw import Drawing
from models.shapes.evaluate_siblings import redux_rates
from models.shapes.flow import Batch, new_transformer, velocity
from models.shapes.layout import lay_out
from models.shapes.scenes import SHAPES, Scene, Thing, random_scene
from models.shapes.siblings.redux import ROLES, TOKENS, covers_of, in_reading_order, word_tokens
from models.shapes.text import SERVED_LENGTH
from models.shapes.tokens import load_tokenizers
from models.shapes.train_siblings import BASE

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def test_every_word_of_a_caption_stands_at_the_token_of_its_role() -> None:
    _, tokenizer = load_tokenizers(BASE)
    rng = random.Random(5)
    for scene in (in_reading_order(random_scene(rng)) for _ in range(200)):
        ids = tokenizer([plain_caption(scene)], padding="max_length", max_length=SERVED_LENGTH).input_ids[0]
        taken = word_tokens(scene)
        said = [tokenizer.convert_ids_to_tokens(ids[i]) if i >= 0 else None for i in taken]
        assert sorted(i for i in taken if i >= 0) == list(range(sum(word != 0 for word in ids)))  # each of them once
        assert len(taken) == TOKENS
        named = scene.things[:1] if len(set(scene.things)) < len(scene.things) else scene.things
        for i, thing in enumerate(named):
            colour, shape, size = said[i * ROLES : i * ROLES + 3]
            assert colour == f"▁{thing.colour}"
            assert shape is not None
            assert shape.startswith(f"▁{thing.shape}")
            assert size == (None if thing.size == "normal" else f"▁{thing.size}")
        assert said[3 * ROLES + 2] == f"▁{scene.ground}"


def test_a_token_may_stand_for_many() -> None:
    torch.manual_seed(0)
    model = new_transformer(width=32, double=1, single=1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    make_lean(model)
    short = Batch(torch.randn(2, 16, 64), torch.randn(2, 96), torch.randn(2, 6, 128), 256, 256)
    long = Batch(short.latents, short.pooled, short.sequence[:, [0, 1, 2, 2, 2, 2, 3, 4, 5]], 256, 256)
    sigma, scale = torch.tensor([0.3, 0.9]), torch.full((2,), 3.5)
    often = torch.zeros(6)
    often[2] = math.log(4)
    with torch.no_grad():
        expected = velocity(model, long.latents, sigma, long, scale)
        assert torch.allclose(velocity(model, short.latents, sigma, short, scale, often), expected, atol=1e-5)
        assert not torch.allclose(velocity(model, short.latents, sigma, short, scale), expected, atol=1e-3)


def test_a_patch_is_covered_by_the_thing_it_shows_or_by_the_ground() -> None:
    scene = Scene("blue", (Thing("heart", "red", "centre"),))
    layout = lay_out(scene, 128, 96, random.Random(1))
    covers = covers_of(Drawing.of([layout]))[0].view(6, 6, 4)
    assert covers[2, 3, 0] == SHAPES.index("heart") + 1
    assert torch.equal(covers[2, 3, 1:], torch.tensor(layout.poses[0].colour))
    assert covers[0, 0, 0] == 0
    assert torch.equal(covers[0, 0, 1:], torch.tensor(layout.ground))


def test_the_redux_folder_keeps_the_grounds_of_pictures() -> None:
    assert redux_rates(4, 512, 4)["ground"] >= 75
