"""The scorer against drawn truth, where the answer is known: it must see what is there and refuse what is not."""

import random
from dataclasses import replace

import numpy as np
import pytest

from models.shapes.draw import pictures
from models.shapes.layout import lay_out
from models.shapes.scenes import COLOURS, SHAPES, Scene, Thing, random_scene
from models.shapes.scorer import Pixels, read, score, zone


def drawn(scene: Scene, width: int, height: int, rng: random.Random) -> Pixels:
    picture = pictures([lay_out(scene, width, height, rng)])[0].permute(1, 2, 0)
    return np.asarray(((picture + 1) * 127.5).round().byte().numpy())


@pytest.mark.parametrize("size", [(512, 512), (256, 256), (768, 512), (384, 640)])
def test_drawn_truth_is_read_right(size: tuple[int, int]) -> None:
    rng = random.Random(sum(size))
    scenes = [random_scene(rng) for _ in range(25)]
    perfect = sum(score(scene, read(drawn(scene, *size, rng))).is_perfect for scene in scenes)
    assert perfect == 25


def test_a_wrong_caption_loses_exactly_the_wrong_attribute() -> None:
    rng = random.Random(9)
    thing = Thing("star", "red", "top left")
    scene = Scene("green", (thing,))
    reading = read(drawn(scene, 512, 512, rng))

    def wrong(asked: Scene) -> set[str]:
        result = score(asked, reading)
        return {name for name in result.asked if result.right[name] < result.asked[name]}

    assert wrong(scene) == set()
    assert wrong(replace(scene, ground="blue")) == {"ground"}
    assert wrong(replace(scene, things=(replace(thing, colour="pink"),))) == {"colour"}
    assert wrong(replace(scene, things=(replace(thing, shape="heart"),))) == {"shape"}
    assert wrong(replace(scene, things=(replace(thing, place="right"),))) == {"place"}
    assert "count" in wrong(Scene("green", (thing, Thing("star", "red", "bottom"))))


def test_random_wrong_captions_are_rejected() -> None:
    rng = random.Random(10)
    for _ in range(15):
        scene, other = random_scene(rng), random_scene(rng)
        if scene.things != other.things:
            assert not score(other, read(drawn(scene, 512, 512, rng))).is_perfect


def test_a_ragged_blob_has_no_shape() -> None:
    y, x = np.mgrid[:256, :256] - 128
    radius = 60 + 18 * np.sin(7 * np.arctan2(y, x)) + 14 * np.cos(3 * np.arctan2(y, x))
    picture = np.where((np.hypot(x, y) < radius)[..., None], COLOURS["red"], COLOURS["white"]).astype(np.uint8)
    assert [thing.shape for thing in read(picture).things] == [None]


def test_noise_and_a_plain_ground_hold_nothing() -> None:
    plain = np.full((256, 256, 3), COLOURS["blue"], dtype=np.uint8)
    assert read(plain).things == ()
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    assert all(thing.shape is None for thing in read(noise).things)


def test_all_shapes_are_told_apart_when_small_and_tilted() -> None:
    rng = random.Random(11)
    for shape in SHAPES:
        scene = Scene("white", (Thing(shape, "blue", "bottom right", "small"),))
        assert read(drawn(scene, 512, 512, rng)).things[0].shape == shape


def test_zones_split_the_picture_in_nine() -> None:
    assert [zone(x, 0.5) for x in (0.23, 0.5, 0.77)] == [(0, 1), (1, 1), (2, 1)]
    assert zone(0.1, 0.95) == (0, 2)
