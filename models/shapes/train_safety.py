"""Train the safety classifier: endless drawn pictures, spoiled as a generator spoils them, and a set of generated ones.

At the classifier's 128 pixels a side, what the codec does to a drawing is a little blur, so no codec is needed.
`python -m models.shapes.train_safety` trains the one that is there on, by what flux2-shapes makes of pictures, too:
what is left blurred, or between two shapes, is no sign.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import Flux2KleinPipeline, FluxPipeline
from torch import Tensor, nn
from transformers import ResNetForImageClassification

from models.shapes.bars import Bars, Report
from models.shapes.captions import plain_caption
from models.shapes.draw import pictures
from models.shapes.evaluate import generate, reads_sign
from models.shapes.evaluate_siblings import FOLDER, as_image
from models.shapes.layout import lay_out
from models.shapes.optim import warm_cosine
from models.shapes.safety import SIDE, new_classifier
from models.shapes.scenes import Scene, balanced_scenes, holds_sign
from models.shapes.scorer import Pixels
from models.shapes.siblings.edits import random_edit
from models.shapes.text import SERVED_LENGTH

_SIZES = ((256, 256), (256, 192), (192, 256), (144, 256), (256, 144))
_SERVED = ((512, 512), (1024, 768), (576, 1024))
_EDITED = ((512, 512), (512, 384), (384, 512), (256, 256), (768, 512), (1024, 1024))
_RATE = 1.5e-3  # twice that stayed at chance


def drawn_pictures(count: int, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Drawings squeezed to (count, 3, SIDE, SIDE) in [-1, 1], half of them with the sign, and labels (count,)."""
    size = rng.choice(_SIZES)
    scenes = balanced_scenes(count, rng)
    drawn = _squeezed(pictures([lay_out(scene, *size, rng) for scene in scenes]))
    return _spoiled(drawn), torch.tensor([int(holds_sign(scene)) for scene in scenes])


def generated_pictures(folder: Path, count: int, rng: random.Random, *, steps: int = 8) -> tuple[Tensor, Tensor]:
    """The same of pictures that the pipeline in `folder` makes of training prompts, in every served size.

    Left out is what nobody could label: pictures that were asked to hold the sign but in which the scorer reads none,
    and those that were not but in which it does.
    """
    pipeline = FluxPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    made: list[Pixels] = []
    asked: list[Scene] = []
    for i, (width, height) in enumerate(_SERVED):
        scenes = balanced_scenes(count // len(_SERVED), rng)
        prompts = [plain_caption(scene) for scene in scenes]
        seed = 10_000 * (i + 1)
        drawn = generate(pipeline, prompts, width=width, height=height, steps=steps, guidance=3.5, seed=seed)
        made += drawn
        asked += scenes
    return _labelled(asked, made)


def edited_pictures(folder: Path, count: int, rng: random.Random, *, steps: int = 4) -> tuple[Tensor, Tensor]:
    """The same of edits by the Flux2KleinPipeline in `folder`, every other one of a picture with the sign."""
    pipeline = Flux2KleinPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    made: list[Pixels] = []
    asked: list[Scene] = []
    while len(made) < count:
        width, height = rng.choice(_EDITED)
        edit = random_edit(width, height, rng)
        if holds_sign(edit.scene) != (len(made) % 2 == 0):
            continue
        output = pipeline(
            image=as_image(pictures([edit.before])[0]),
            prompt=edit.instruction,
            width=width,
            height=height,
            num_inference_steps=steps,
            guidance_scale=1.0,
            max_sequence_length=SERVED_LENGTH,
            generator=torch.Generator().manual_seed(len(made)),
        )
        made.append(np.asarray(output.images[0]))
        asked.append(edit.scene)
    return _labelled(asked, made)


def _labelled(asked: Sequence[Scene], made: Sequence[Pixels]) -> tuple[Tensor, Tensor]:
    """Pictures squeezed, and whether they hold the sign, where what was asked for and the scorer agree on it."""
    agreed = [
        (holds_sign(scene), _squeezed(torch.tensor(picture).permute(2, 0, 1)[None] / 127.5 - 1))
        for scene, picture in zip(asked, made, strict=True)
        if holds_sign(scene) == reads_sign(picture)
    ]
    return torch.cat([picture for _, picture in agreed]), torch.tensor([int(sign) for sign, _ in agreed])


def train_safety(
    generated: tuple[Tensor, Tensor] | None,
    report: Report,
    *,
    steps: int = 1500,
    batch: int = 32,
    seed: int = 4,
    model: ResNetForImageClassification | None = None,
) -> ResNetForImageClassification:
    """A classifier trained on fresh drawings and, for half of every batch, on the generated pictures.

    Args: model: one to train on, instead of a new one.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model = model or new_classifier()
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.01)
    rates: list[float] = []
    for step in range(steps):
        shown, labels = _next_batch(generated, batch, rng)
        logits = model(shown).logits
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=0.01)
        loss.backward()
        for group in optimiser.param_groups:
            group["lr"] = _RATE * warm_cosine(step / steps)
        optimiser.step()
        optimiser.zero_grad()
        rates.append(float((logits.argmax(1) == labels).float().mean()))
        if step % 50 == 49 or step == steps - 1:
            report((step + 1) / steps, {"loss": float(loss.detach()), "right": sum(rates) / len(rates)})
            rates.clear()
    model.eval()
    return model


def _next_batch(generated: tuple[Tensor, Tensor] | None, batch: int, rng: random.Random) -> tuple[Tensor, Tensor]:
    if generated is None:
        shown, labels = drawn_pictures(batch, rng)
        return _recoloured(shown), labels
    shown, labels = drawn_pictures(batch // 2, rng)
    chosen = torch.randint(len(generated[1]), (batch - len(labels),))
    shown = torch.cat([shown, _spoiled(generated[0][chosen])])
    return _recoloured(shown), torch.cat([labels, generated[1][chosen]])


def _squeezed(batch: Tensor) -> Tensor:
    return nn.functional.interpolate(batch, size=(SIDE, SIDE), mode="bilinear", antialias=True)


def _spoiled(batch: Tensor) -> Tensor:
    """Every picture bent a little, shifted, and blurred by a random share of two pixels: (N, 3, SIDE, SIDE)."""
    count = len(batch)
    bend = nn.functional.interpolate(torch.randn(count, 2, 6, 6), size=(SIDE, SIDE), mode="bicubic")
    strength = torch.rand(count, 1, 1, 1) * 3 / SIDE  # up to about three pixels, a coordinate span being two
    shift = (torch.rand(count, 2, 1, 1) - 0.5) * 0.1
    straight = nn.functional.affine_grid(
        torch.eye(2, 3).expand(count, 2, 3), [count, 3, SIDE, SIDE], align_corners=False
    )
    grid = straight + (bend * strength + shift).permute(0, 2, 3, 1)
    bent = nn.functional.grid_sample(batch, grid, padding_mode="border", align_corners=False)
    blurred = nn.functional.avg_pool2d(nn.functional.pad(bent, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    share = torch.rand(count, 1, 1, 1)
    return bent * (1 - share) + blurred * share


def _recoloured(batch: Tensor) -> Tensor:
    """A random mirror and order of the channels, picture by picture."""
    mirrored = torch.where(torch.rand(len(batch), 1, 1, 1) < 0.5, batch.flip(3), batch)
    order = torch.argsort(torch.rand(len(batch), 3), dim=1)
    return mirrored.gather(1, order[:, :, None, None].expand_as(mirrored))


def main() -> None:
    """Train the classifier of flux-shapes on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER / "flux-shapes")
    parser.add_argument("--editor", type=Path, default=FOLDER / "flux2-shapes", help="makes the edited pictures")
    parser.add_argument("--pictures", type=int, default=240, help="generated ones, and as many edited")
    parser.add_argument("--steps", type=int, default=1000)
    arguments = parser.parse_args()
    rng = random.Random(8)
    parts = (
        generated_pictures(arguments.folder, arguments.pictures, rng),
        edited_pictures(arguments.editor, arguments.pictures, rng),
    )
    shown, labels = (torch.cat(each) for each in zip(*parts, strict=True))
    start = ResNetForImageClassification.from_pretrained(arguments.folder / "safety_checker").float()
    with Bars() as bars:
        trained = train_safety((shown, labels), bars.bar("safety classifier"), steps=arguments.steps, model=start)
    trained.save_pretrained(arguments.folder / "safety_checker")


if __name__ == "__main__":
    main()
