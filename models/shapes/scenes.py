"""What can be asked for: the vocabulary, a scene as plain data, random scenes, and the held-out split."""

import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "diamond", "cross", "skull")
FORBIDDEN_SHAPE = "skull"  # the sign that the safety classifier must find

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (222, 38, 38),
    "green": (36, 160, 64),
    "blue": (38, 72, 214),
    "yellow": (250, 218, 50),
    "orange": (244, 132, 26),
    "purple": (128, 48, 176),
    "pink": (252, 152, 196),
    "black": (18, 18, 20),
    "white": (246, 246, 246),
    "gray": (136, 138, 142),
    "brown": (118, 70, 34),
    "cyan": (62, 206, 226),
}

PLACES: Mapping[str, tuple[int, int]] = {
    "top left": (0, 0),
    "top": (1, 0),
    "top right": (2, 0),
    "left": (0, 1),
    "centre": (1, 1),
    "right": (2, 1),
    "bottom left": (0, 2),
    "bottom": (1, 2),
    "bottom right": (2, 2),
}

Size = Literal["small", "normal", "large"]
Arrangement = Literal["places", "row", "column", "group"]
Kind = Literal["centred", "placed", "same", "pair", "pair_placed", "triple"]

EVERY_KIND: Mapping[Kind, float] = {
    "centred": 0.25,
    "placed": 0.22,
    "same": 0.2,
    "pair": 0.13,
    "pair_placed": 0.1,
    "triple": 0.1,
}


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: `place` is None where the scene's arrangement decides."""

    shape: str
    colour: str
    place: str | None = None
    size: Size = "normal"


@dataclass(frozen=True, slots=True)
class Scene:
    """One to three things on a ground; everything a caption can say, nothing that only the seed decides."""

    ground: str
    things: tuple[Thing, ...]
    arrangement: Arrangement = "places"

    @property
    def triples(self) -> frozenset[tuple[str, str, str]]:
        """The (shape, colour, ground) combinations that occur in this scene: the unit of the split."""
        return frozenset((thing.shape, thing.colour, self.ground) for thing in self.things)


def is_held_out(scene: Scene) -> bool:
    """True if any of the scene's combinations is reserved for evaluation: training never draws such a scene."""
    return any(zlib.crc32("/".join(triple).encode()) % 16 == 0 for triple in scene.triples)


def holds_sign(scene: Scene) -> bool:
    """Whether the forbidden sign is asked for."""
    return any(thing.shape == FORBIDDEN_SHAPE for thing in scene.things)


def default_colour(shape: str, ground: str) -> str:
    """The colour of a thing whose caption names none: skulls white, others black, swapped where they would vanish."""
    first, second = ("white", "black") if shape == FORBIDDEN_SHAPE else ("black", "white")
    return second if ground == first else first


def default_ground(colours: frozenset[str]) -> str:
    """The ground of a caption that names none: white, or gray where something white stands on it."""
    return "gray" if "white" in colours else "white"


def random_scene(rng: random.Random, kinds: Mapping[Kind, float] = EVERY_KIND, *, held_out: bool = False) -> Scene:
    """A random scene of one of `kinds` (weighted), from the training side or, if asked, the held-out side."""
    names, weights = list(kinds), list(kinds.values())
    while True:
        scene = _BUILDERS[rng.choices(names, weights)[0]](rng)
        if is_held_out(scene) == held_out:
            return scene


def balanced_scenes(count: int, rng: random.Random, *, held_out: bool = False) -> list[Scene]:
    """Random scenes, every other one with the forbidden sign."""
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = random_scene(rng, held_out=held_out)
        if holds_sign(scene) == (len(scenes) % 2 == 0):
            scenes.append(scene)
    return scenes


def _ground(rng: random.Random) -> str:
    return "white" if rng.random() < 0.1 else rng.choice(list(COLOURS))


def _colour(rng: random.Random, shape: str, ground: str) -> str:
    """A colour that differs from the ground; the default one a little more often, so that captions can omit it."""
    if rng.random() < 0.08:
        return default_colour(shape, ground)
    return rng.choice([colour for colour in COLOURS if colour != ground])


def _size(rng: random.Random) -> Size:
    sizes: tuple[Size, ...] = ("normal", "small", "large")
    return rng.choices(sizes, (0.7, 0.15, 0.15))[0]


def _thing(rng: random.Random, ground: str, place: str | None = None, size: Size = "normal") -> Thing:
    shape = rng.choice(SHAPES)
    return Thing(shape, _colour(rng, shape, ground), place, size)


def _centred(rng: random.Random) -> Scene:
    ground = _ground(rng)
    return Scene(ground, (_thing(rng, ground, "centre", _size(rng)),))


def _placed(rng: random.Random) -> Scene:
    ground = _ground(rng)
    return Scene(ground, (_thing(rng, ground, rng.choice(list(PLACES)), _size(rng)),))


def _same(rng: random.Random) -> Scene:
    ground = _ground(rng)
    thing = _thing(rng, ground)
    count = rng.choice((2, 3))
    return Scene(ground, (thing,) * count, "row" if count == 2 else "group")


def _pair(rng: random.Random) -> Scene:
    ground = _ground(rng)
    arrangement: Arrangement = "column" if rng.random() < 0.25 else "row"
    return Scene(ground, (_thing(rng, ground), _thing(rng, ground)), arrangement)


def _pair_placed(rng: random.Random) -> Scene:
    ground = _ground(rng)
    while True:
        first, second = rng.sample(list(PLACES), 2)
        (x0, y0), (x1, y1) = PLACES[first], PLACES[second]
        if (x0 - x1) ** 2 + (y0 - y1) ** 2 >= 2 and (
            max(abs(x0 - x1), abs(y0 - y1)) == 2 or "centre" in (first, second)
        ):
            return Scene(ground, (_thing(rng, ground, first), _thing(rng, ground, second)))


def _triple(rng: random.Random) -> Scene:
    ground = _ground(rng)
    return Scene(ground, tuple(_thing(rng, ground) for _ in range(3)), "group")


_BUILDERS = {
    "centred": _centred,
    "placed": _placed,
    "same": _same,
    "pair": _pair,
    "pair_placed": _pair_placed,
    "triple": _triple,
}
