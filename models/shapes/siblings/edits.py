"""Kontext: a picture, an instruction ("make the star green"), and the picture after it."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from models.shapes.captions import COLOUR_WORDS, PLACE_WORDS, SHAPE_WORDS
from models.shapes.draw import Drawing, latents
from models.shapes.fast import Size
from models.shapes.flow import Batch, pack
from models.shapes.layout import COLUMN_OF_PLACE, RGB, Layout, Pose, lay_out, shade
from models.shapes.scenes import COLOURS, PLACES, SHAPES, Scene, Thing, is_held_out, random_scene
from models.shapes.scorer import Reading
from models.shapes.siblings.judge import all_there, seen_at, wanted
from models.shapes.siblings.questions import AskedBatch, shapes_at
from models.shapes.siblings.sizes import random_size
from models.shapes.text import Encoders, Words, random_length
from models.shapes.train_flow import rows_of

KINDS: Mapping[str, float] = {"recolour": 0.3, "ground": 0.2, "remove": 0.18, "replace": 0.17, "add": 0.15}
# In training: what is hard comes more often.
TAUGHT: Mapping[str, float] = {"recolour": 0.23, "ground": 0.12, "remove": 0.19, "replace": 0.27, "add": 0.19}
ADDED_DIAMETER = 0.31  # of the short side, as in scenes of several placed things
CHANGED_WEIGHT = 2.5  # tokens that an edit changes are few, and what the instruction is about
KEPT_WEIGHT = 2.0  # and so are the tokens of things that it leaves alone: to keep them is the other half of an edit
REFERENCE_NOISE = 0.12  # the encoder is that far from the prescribed latents, and a little less
FORMS: Mapping[str, tuple[str, ...]] = {
    "recolour": (
        "make {the} {colour}",
        "make {the} {colour}",
        "turn {the} {colour}",
        "change {the} to {colour}",
        "paint {the} {colour}",
        "change the colour of {the} to {colour}",
        "change the color of {the} to {colour}",
        "{the} should be {colour}",
    ),
    "ground": (
        "make the {ground} {colour}",
        "turn the {ground} {colour}",
        "turn the {ground} {colour}",
        "change the {ground} to {colour}",
        "change the {ground} colour to {colour}",
        "change the {ground} color to {colour}",
        "put it on a {colour} {ground}",
        "the {ground} should be {colour}",
    ),
    "remove": ("remove {the}", "remove {the}", "delete {the}", "erase {the}", "take away {the}", "get rid of {the}"),
    "replace": (
        "replace {the} with {new}",
        "replace {the} with {new}",
        "turn {the} into {new}",
        "change {the} into {new}",
        "change {the} to {new}",
    ),
    "add": ("add {new} {place}", "add {new} {place}", "put {new} {place}", "draw {new} {place}", "place {new} {place}"),
}
_GROUND_WORDS = ("background", "background", "ground")
_ENDINGS = ("", "", "", ".", " please")


@dataclass(frozen=True)
class Edit:
    """A picture before and after one instruction; things correspond by position, an added one is last."""

    kind: str
    instruction: str
    before: Layout
    after: Layout
    scene: Scene  # after the edit
    changed: tuple[int, ...]  # things of `scene` that the edit is about; none for the ground or a removal
    gone: tuple[Pose, ...] = ()  # what was removed


@dataclass(frozen=True)
class _Told:
    """How an instruction is worded: plainly for evaluation, with synonyms in training."""

    rng: random.Random
    plain: bool

    def colour(self, name: str) -> str:
        return name if self.plain or self.rng.random() > 0.1 else self.rng.choice(COLOUR_WORDS[name])

    def shape(self, name: str) -> str:
        return name if self.plain else self.rng.choice(SHAPE_WORDS[name])

    def place(self, name: str) -> str:
        return PLACE_WORDS[name][0] if self.plain else self.rng.choice(PLACE_WORDS[name])

    def ground(self) -> str:
        return "background" if self.plain else self.rng.choice(_GROUND_WORDS)

    def say(self, kind: str, **words: str) -> str:
        text = (FORMS[kind][0] if self.plain else self.rng.choice(FORMS[kind])).format(**words)
        text = text if self.plain else text + self.rng.choice(_ENDINGS)
        return text.capitalize() if not self.plain and self.rng.random() < 0.25 else text


def random_edit(
    width: int,
    height: int,
    rng: random.Random,
    *,
    held_out: bool = False,
    kind: str | None = None,
    kinds: Mapping[str, float] = KINDS,
) -> Edit:
    """A random edit in a `width` x `height` picture, of a `kind` or of `kinds` by weight.

    Both pictures are on the training side; or, if asked, the picture after the edit is on the held-out side.
    """
    while True:
        scene = random_scene(rng, held_out=held_out and rng.random() < 0.5)
        chosen = kind or rng.choices(list(kinds), list(kinds.values()))[0]
        edit = _EDITS[chosen](scene, lay_out(scene, width, height, rng), rng, _Told(rng, plain=held_out))
        if edit is not None and is_held_out(edit.scene) == held_out:
            return edit


def _pick(scene: Scene, rng: random.Random, told: _Told) -> tuple[tuple[int, ...], str]:
    """Some things, and what they are called: by shape, or by colour and shape."""
    thing = rng.choice(scene.things)
    by_colour = rng.random() < 0.5
    picked = tuple(
        i
        for i, other in enumerate(scene.things)
        if other.shape == thing.shape and (not by_colour or other.colour == thing.colour)
    )
    if len(scene.things) == 1 and not told.plain and rng.random() < 0.1:
        return picked, "it"
    noun = told.shape(thing.shape)
    if len(picked) > 1:
        noun = {"box": "boxes", "cross": "crosses", "rhombus": "rhombuses"}.get(noun, noun + "s")
    return picked, f"the {told.colour(thing.colour)} {noun}" if by_colour else f"the {noun}"


def _recolour(scene: Scene, layout: Layout, rng: random.Random, told: _Told) -> Edit | None:
    picked, the = _pick(scene, rng, told)
    colour = rng.choice([c for c in COLOURS if c != scene.ground and all(c != scene.things[i].colour for i in picked)])
    things, poses = list(scene.things), list(layout.poses)
    tone = shade(colour, rng)
    for i in picked:
        things[i], poses[i] = replace(things[i], colour=colour), replace(poses[i], colour=tone)
    text = told.say("recolour", the=the, colour=told.colour(colour))
    after = replace(layout, poses=tuple(poses))
    return Edit("recolour", text, layout, after, replace(scene, things=tuple(things)), picked)


def _reground(scene: Scene, layout: Layout, rng: random.Random, told: _Told) -> Edit | None:
    ground = rng.choice([c for c in COLOURS if c != scene.ground and all(c != thing.colour for thing in scene.things)])
    text = told.say("ground", ground=told.ground(), colour=told.colour(ground))
    after = replace(layout, ground=shade(ground, rng))
    return Edit("ground", text, layout, after, replace(scene, ground=ground), ())


def _remove(scene: Scene, layout: Layout, rng: random.Random, told: _Told) -> Edit | None:
    picked, the = _pick(scene, rng, told)
    if len(picked) == len(scene.things) and rng.random() < 0.7:
        return None  # an empty ground now and then
    things = tuple(thing for i, thing in enumerate(scene.things) if i not in picked)
    poses = tuple(pose for i, pose in enumerate(layout.poses) if i not in picked)
    gone = tuple(layout.poses[i] for i in picked)
    after, left = replace(layout, poses=poses), replace(scene, things=things)
    return Edit("remove", told.say("remove", the=the), layout, after, left, (), gone)


def _reshape(scene: Scene, layout: Layout, rng: random.Random, told: _Told) -> Edit | None:
    picked, the = _pick(scene, rng, told)
    if len(picked) > 1:
        return None
    (i,) = picked
    shape = rng.choice([s for s in SHAPES if s != scene.things[i].shape])
    colour, tone, new = scene.things[i].colour, layout.poses[i].colour, told.shape(shape)
    if not told.plain and rng.random() < 0.25:
        colour = rng.choice([c for c in COLOURS if c != scene.ground])
        tone, new = shade(colour, rng), f"{told.colour(colour)} {new}"
    things, poses = list(scene.things), list(layout.poses)
    things[i] = replace(things[i], shape=shape, colour=colour)
    poses[i] = replace(poses[i], shape=shape, colour=tone)
    text = told.say("replace", the=the, new=_a(new))
    after = replace(layout, poses=tuple(poses))
    return Edit("replace", text, layout, after, replace(scene, things=tuple(things)), picked)


def _add(scene: Scene, layout: Layout, rng: random.Random, told: _Told) -> Edit | None:
    place = rng.choice(list(PLACES))
    pose = _pose_at(place, layout, rng)
    if len(scene.things) > 2 or any(_touch(pose, other) for other in layout.poses):
        return None
    colour = rng.choice([c for c in COLOURS if c != scene.ground])
    pose = replace(pose, shape=rng.choice(SHAPES), colour=shade(colour, rng))
    new = _a(f"{told.colour(colour)} {told.shape(pose.shape)}")
    text = told.say("add", new=new, place=told.place(place))
    after = replace(layout, poses=(*layout.poses, pose))
    grown = replace(scene, things=(*scene.things, Thing(pose.shape, colour, place)))
    return Edit("add", text, layout, after, grown, (len(scene.things),))


_EDITS: Mapping[str, Callable[[Scene, Layout, random.Random, _Told], Edit | None]] = {
    "recolour": _recolour,
    "ground": _reground,
    "remove": _remove,
    "replace": _reshape,
    "add": _add,
}


def _pose_at(place: str, layout: Layout, rng: random.Random) -> Pose:
    """Where an added thing stands; its shape and colour come later."""
    (column, row), short = PLACES[place], min(layout.width, layout.height)
    black: RGB = (0.0, 0.0, 0.0)
    return Pose(
        "circle",
        COLUMN_OF_PLACE[column] * layout.width + rng.uniform(-0.02, 0.02) * short,
        COLUMN_OF_PLACE[row] * layout.height + rng.uniform(-0.02, 0.02) * short,
        ADDED_DIAMETER * short / 2 * rng.uniform(0.95, 1.05),
        rng.uniform(-9, 9),
        black,
    )


def _touch(one: Pose, other: Pose) -> bool:
    return bool((one.x - other.x) ** 2 + (one.y - other.y) ** 2 < (1.05 * (one.radius + other.radius)) ** 2)


def _a(phrase: str) -> str:
    return f"an {phrase}" if phrase[0] in "aeio" else f"a {phrase}"


@dataclass(frozen=True)
class Edits:
    """Edits as numbers, before they are drawn."""

    before: Drawing
    after: Drawing
    words: Words

    @torch.no_grad()
    def shown(self, encoders: Encoders) -> Batch:
        """The batch, drawn on the encoders' device; the pictures before the edits are the reference."""
        pooled, sequence = encoders.read(self.words)
        clean, reference = (pack(latents(part.to(pooled.device))) for part in (self.after, self.before))
        changed = (clean - reference).abs().amax(2, keepdim=True) > 0.1
        before, after = (shapes_at(part.to(pooled.device)) for part in (self.before, self.after))
        noise = torch.rand_like(clean[:, :1, :1]) * REFERENCE_NOISE
        reference = reference + noise * torch.randn_like(reference)
        weight = 1 + (CHANGED_WEIGHT - 1) * changed + (KEPT_WEIGHT - 1) * (~changed & (before >= 0)[..., None])
        read, shapes = (clean, pooled, sequence, self.after.height, self.after.width), torch.cat([after, before], 1)
        return AskedBatch(*read, reference=reference, weight=weight, shapes=shapes, changed=changed)


def plan_edits(encoders: Encoders, rng: random.Random, size: Size, length: int, count: int) -> Edits:
    """Fresh edits of one size. A few without words change nothing."""
    edits = [random_edit(*size, rng, kinds=TAUGHT) for _ in range(count)]
    silent = [rng.random() < 0.05 for _ in edits]
    after = [edit.before if quiet else edit.after for edit, quiet in zip(edits, silent, strict=True)]
    words = ["" if quiet else edit.instruction for edit, quiet in zip(edits, silent, strict=True)]
    before = [edit.before for edit in edits]
    return Edits(Drawing.of(before), Drawing.of(after), encoders.words(words, length))


def draw_edits(encoders: Encoders, rng: random.Random, done: float, tokens: int) -> Batch:
    """A fresh batch of edits."""
    size = random_size(rng, done)
    return plan_edits(encoders, rng, size, random_length(rng), rows_of(size, tokens // 2, most=96)).shown(encoders)


def judge_edit(edit: Edit, reading: Reading) -> tuple[bool, bool]:
    """Whether the edit was done, and whether all else was kept (nothing added, lost or changed)."""
    things = wanted(edit.scene, edit.after)
    changed = [things[i] for i in edit.changed]
    others = [thing for i, thing in enumerate(things) if i not in edit.changed]
    kept = len(reading.things) == len(things) and all_there(reading, others)
    if edit.kind == "ground":
        return reading.ground == edit.scene.ground, kept
    kept &= reading.ground == edit.scene.ground
    if edit.kind == "remove":
        size = edit.after.width, edit.after.height
        spots = [seen_at(reading, pose.x / size[0], pose.y / size[1]) for pose in edit.gone]
        return not any(spots), kept
    if edit.kind == "recolour":
        seen = [seen_at(reading, thing.x, thing.y) for thing in changed]
        pairs = [(thing, one) for thing, one in zip(changed, seen, strict=True) if one is not None]
        found = len(pairs) == len(changed)
        done = found and all(one.colour == thing.colour for thing, one in pairs)
        return done, kept and found and all(one.shape == thing.shape for thing, one in pairs)
    return all_there(reading, changed), kept
