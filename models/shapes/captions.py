"""How people ask: one of many phrasings for a scene, with synonyms, articles, filler words and either case."""

import random
from collections.abc import Mapping, Sequence

from models.shapes.scenes import Scene, Thing, default_colour, default_ground

SHAPE_WORDS: Mapping[str, Sequence[str]] = {
    "circle": ("circle", "circle", "circle", "disc", "disk", "dot", "ball"),
    "square": ("square", "square", "square", "box"),
    "triangle": ("triangle",),
    "star": ("star", "star", "star", "five-pointed star"),
    "heart": ("heart", "heart", "heart", "love heart"),
    "ring": ("ring", "ring", "ring", "donut", "hoop"),
    "diamond": ("diamond", "diamond", "diamond", "rhombus"),
    "cross": ("cross", "cross", "cross", "plus sign"),
    "skull": ("skull", "skull", "skull", "death's head"),
}
COLOUR_WORDS: Mapping[str, Sequence[str]] = {
    "red": ("crimson", "scarlet"),
    "green": ("emerald", "grass green"),
    "blue": ("navy", "royal blue"),
    "yellow": ("golden", "lemon"),
    "orange": ("tangerine",),
    "purple": ("violet",),
    "pink": ("rose",),
    "black": ("jet black",),
    "white": ("snow white",),
    "gray": ("grey", "grey", "silver"),
    "brown": ("chocolate",),
    "cyan": ("turquoise", "aqua"),
}
SIZE_WORDS: Mapping[str, Sequence[str]] = {
    "small": ("small", "small", "little", "tiny"),
    "normal": ("",),
    "large": ("large", "big", "huge"),
}
PLACE_WORDS: Mapping[str, Sequence[str]] = {
    "top left": (
        "at the top left",
        "in the top left corner",
        "in the upper left",
        "in the upper left corner",
        "top left",
    ),
    "top": ("at the top", "at the top", "at the top centre", "near the top edge", "in the upper middle"),
    "top right": ("at the top right", "in the top right corner", "in the upper right", "in the upper right corner"),
    "left": ("on the left", "at the left", "on the left side", "on the left hand side", "at the centre left"),
    "centre": ("in the centre", "in the center", "in the middle", "at the centre", "at the center"),
    "right": ("on the right", "at the right", "on the right side", "on the right hand side", "at the centre right"),
    "bottom left": ("at the bottom left", "in the bottom left corner", "in the lower left", "in the lower left corner"),
    "bottom": ("at the bottom", "at the bottom", "at the bottom centre", "near the bottom edge", "in the lower middle"),
    "bottom right": ("at the bottom right", "in the bottom right corner", "in the lower right", "bottom right"),
}
GROUND_FORMS = (
    "{things} on a {ground} background",
    "{things} on a {ground} background",
    "{things} on a {ground} background",
    "{things} on {ground}",
    "{things} on {ground}",
    "{things}, {ground} background",
    "{things} against a {ground} background",
    "{things} against a {ground} backdrop",
    "{things} with a {ground} background",
    "{things} on a {ground} ground",
    "{things} in front of a {ground} wall",
    "{things} over {ground}",
    "{ground} background, {things}",
    "{ground} background with {things}",
    "on a {ground} background, {things}",
    "background: {ground}, {things}",
    "{things}, the background is {ground}",
)
OPENINGS = (
    *[""] * 14,
    "a picture of ",
    "an image of ",
    "a photo of ",
    "a drawing of ",
    "a painting of ",
    "an illustration of ",
    "a simple picture of ",
    "a minimalist poster of ",
    "draw ",
    "please draw ",
    "generate an image of ",
    "show me ",
    "there is ",
)
ENDINGS = (
    *[""] * 14,
    ".",
    "!",
    ", flat design",
    ", vector art",
    ", minimalist",
    ", high quality",
    ", 4k",
    ", simple shapes",
    ", cartoon style",
    " please",
)
FILLERS = ("beautiful", "pretty", "nice", "bright", "shiny", "single", "cute", "perfect", "simple", "lone")
COUNT_WORDS: Mapping[int, Sequence[str]] = {
    2: ("two", "two", "2", "a pair of"),
    3: ("three", "three", "3", "a trio of"),
}


def caption(scene: Scene, rng: random.Random) -> str:
    """One of many captions that mean exactly `scene`; what it leaves out is what the defaults give."""
    things = _things(scene, rng)
    grounds = frozenset(thing.colour for thing in scene.things)
    if scene.ground == default_ground(grounds) and rng.random() < 0.35:
        text = things
    else:
        text = rng.choice(GROUND_FORMS).format(things=things, ground=_colour(scene.ground, rng))
    text = rng.choice(OPENINGS) + text + rng.choice(ENDINGS)
    draw = rng.random()
    return text.upper() if draw < 0.03 else text[0].upper() + text[1:] if draw < 0.3 else text


def plain_caption(scene: Scene) -> str:
    """The plainest wording, for reports: "a red star at the top left on a green background"."""
    noun = [f"{'' if t.size == 'normal' else t.size + ' '}{t.colour} {t.shape}" for t in scene.things]
    if len(set(scene.things)) < len(scene.things):
        things = (
            f"{COUNT_WORDS[len(noun)][0]} {noun[0]}s"
            if scene.things[0].shape != "cross"
            else f"{COUNT_WORDS[len(noun)][0]} {noun[0]}es"
        )
    else:
        parts = [
            f"a {word}" + (f" {PLACE_WORDS[t.place][0]}" if t.place and (t.place != "centre" or len(noun) > 1) else "")
            for word, t in zip(noun, scene.things, strict=True)
        ]
        joint = " above " if scene.arrangement == "column" else " and "
        things = ", ".join(parts[:-1]) + joint + parts[-1] if len(parts) > 1 else parts[0]
    return f"{things.replace('a orange', 'an orange')} on {_article(scene.ground)} background"


def _things(scene: Scene, rng: random.Random) -> str:
    if len(scene.things) > 1 and len(set(scene.things)) == 1:
        return _several(scene, rng)
    phrases = [_thing(thing, scene, rng) for thing in scene.things]
    if len(phrases) == 1:
        return phrases[0]
    if scene.arrangement in ("row", "column"):
        return _related(scene.arrangement, phrases, rng)
    if rng.random() < 0.1 and scene.arrangement == "places":
        phrases.reverse()  # named places do not depend on the order
    last = rng.choice((" and ", " and ", ", and "))
    return ", ".join(phrases[:-1]) + last + phrases[-1]


def _several(scene: Scene, rng: random.Random) -> str:
    thing, count = scene.things[0], len(scene.things)
    words = [rng.choice(COUNT_WORDS[count]), _colour_or_nothing(thing, scene, rng), _plural(_shape(thing, rng))]
    tail = rng.choice((" side by side", " next to each other")) if count == 2 and rng.random() < 0.15 else ""
    return " ".join(word for word in words if word) + tail


def _related(arrangement: str, phrases: list[str], rng: random.Random) -> str:
    first, second = phrases
    if arrangement == "column":
        forms: tuple[str, ...] = (f"{first} above {second}", f"{second} below {first}", f"{second} under {first}")
    else:
        forms = (
            *[f"{first} and {second}"] * 5,
            f"{first} next to {second}",
            f"{first} beside {second}",
            f"{first} to the left of {second}",
            f"{second} to the right of {first}",
            f"{first} and {second} side by side",
        )
    return rng.choice(forms)


def _thing(thing: Thing, scene: Scene, rng: random.Random) -> str:
    size, colour = rng.choice(SIZE_WORDS[thing.size]), _colour_or_nothing(thing, scene, rng)
    filler = rng.choice(FILLERS) if rng.random() < 0.08 else ""
    noun = _shape(thing, rng)
    if colour and rng.random() < 0.04:
        words = [filler, size, noun, "in", colour]
    else:
        words = [size, filler, colour, noun] if rng.random() < 0.5 else [filler, size, colour, noun]
    phrase = " ".join(word for word in words if word)
    article = rng.choices((_an(phrase), phrase, f"one {phrase}", f"the {phrase}"), (0.84, 0.1, 0.03, 0.03))[0]
    named = thing.place is not None and (thing.place != "centre" or len(scene.things) > 1 or rng.random() < 0.25)
    return f"{article} {rng.choice(PLACE_WORDS[thing.place])}" if named and thing.place else article


def _colour_or_nothing(thing: Thing, scene: Scene, rng: random.Random) -> str:
    if thing.colour == default_colour(thing.shape, scene.ground) and rng.random() < 0.3:
        return ""
    return _colour(thing.colour, rng)


def _colour(name: str, rng: random.Random) -> str:
    return rng.choice(COLOUR_WORDS[name]) if rng.random() < 0.12 else name


def _shape(thing: Thing, rng: random.Random) -> str:
    return rng.choice(SHAPE_WORDS[thing.shape])


def _plural(noun: str) -> str:
    return {"box": "boxes", "cross": "crosses", "rhombus": "rhombuses", "death's head": "death's heads"}.get(
        noun, noun + "s"
    )


def _article(colour: str) -> str:
    return _an(colour)


def _an(phrase: str) -> str:
    return f"an {phrase}" if phrase[0] in "aeio" else f"a {phrase}"
