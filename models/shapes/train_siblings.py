"""Train a sibling of flux-shapes from its weights: `python -m models.shapes.train_siblings kontext --minutes 25`.

Writes the sibling's folder beside the one that it starts from; resumes from `--work`.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn
from transformers import CLIPTextModel, DepthAnythingForDepthEstimation, T5EncoderModel

from models.shapes.export import export_controlnet, export_estimator, export_redux, export_sibling
from models.shapes.siblings.control import CHANNELS as CONTROL_CHANNELS
from models.shapes.siblings.control import WithControlNet, draw_controlled, draw_edges, new_controlnet
from models.shapes.siblings.depth import DepthTraining
from models.shapes.siblings.edits import draw_edits
from models.shapes.siblings.fill import CHANNELS as FILL_CHANNELS
from models.shapes.siblings.fill import draw_fillings, spread_mask
from models.shapes.siblings.lora import DRAWS, adapted, save_adapter
from models.shapes.siblings.redux import ReduxModel, ReduxTraining
from models.shapes.siblings.widen import widened
from models.shapes.text import Encoders
from models.shapes.tokens import load_tokenizers
from models.shapes.train_flow import Draw, FlowTraining

BASE = Path(__file__).parent / "flux-shapes"
PEAK = 0.4  # of the learning rates that a transformer starts with from nothing
# Short runs at the base's own 0.02 blur the shapes that it draws; new input columns and norms are AdamW's and go on.
LR_MUON = 0.005
LR_ADAPTER = 0.03  # an adapter starts at zero and has the base's shapes to lean on
MEMORY = 0.995  # of the averaged weights: these runs are short
Report = Callable[[float, dict[str, float]], None]


@dataclass(frozen=True)
class Recipe:
    """A sibling whose transformer is trained: what it is shown, and its folders with the classes that open them.

    Of several folders all but the first link to its transformer.
    """

    folders: Mapping[str, str]
    draw: Draw
    channels: int = 0  # more than the base's
    guided_from: float = 1.01  # of the run
    finish: Callable[[FluxTransformer2DModel], FluxTransformer2DModel] | None = None  # before it is written


RECIPES = {
    "kontext": Recipe({"kontext": "FluxKontextPipeline"}, draw_edits),
    "fill": Recipe({"fill": "FluxFillPipeline"}, draw_fillings, FILL_CHANNELS, guided_from=0.7, finish=spread_mask),
    "control": Recipe(
        {"canny": "FluxControlPipeline", "depth": "FluxControlPipeline"}, draw_controlled, CONTROL_CHANNELS
    ),
}


@dataclass(frozen=True)
class Run:
    """Where a training starts and ends, and how long it takes."""

    base: Path
    out: Path
    work: Path
    seconds: float
    tokens: int
    device: torch.device
    report: Report


def base_encoders(folder: Path) -> Encoders:
    """The frozen text encoders of a pipeline folder."""
    clip = CLIPTextModel.from_pretrained(folder / "text_encoder").eval().requires_grad_(False)
    t5 = T5EncoderModel.from_pretrained(folder / "text_encoder_2").eval().requires_grad_(False)
    return Encoders(clip, t5, *load_tokenizers(folder))


def base_transformer(folder: Path) -> FluxTransformer2DModel:
    """The transformer of a pipeline folder, in float32."""
    transformer: FluxTransformer2DModel = FluxTransformer2DModel.from_pretrained(folder / "transformer").float()
    return transformer


def train_transformer(name: str, run: Run) -> None:
    """Train one of RECIPES and write its folder."""
    recipe = RECIPES[name]
    start = base_transformer(run.base)
    training = flow_training(widened(start, recipe.channels) if recipe.channels else start, recipe, run)
    trained = training.run(run.seconds, run.report, checkpoint=run.work / f"{name}.pt", save_every=60)
    trained = recipe.finish(trained.cpu()) if recipe.finish else trained.cpu()
    folders = [run.out / f"{run.base.name}-{suffix}" for suffix in recipe.folders]
    for folder, pipeline in zip(folders, recipe.folders.values(), strict=True):
        export_sibling(folder, trained, run.base, pipeline, like=folders[0] if folder != folders[0] else None)


def flow_training(model: nn.Module, recipe: Recipe, run: Run, lr_muon: float = LR_MUON) -> FlowTraining:
    """A training of `model` by a recipe, with the base's encoders."""
    return FlowTraining(
        base_encoders(run.base).on(run.device),
        device=run.device,
        tokens=run.tokens,
        model=model,
        draw=recipe.draw,
        guided_from=recipe.guided_from,
        peak=PEAK,
        lr_muon=lr_muon,
        memory=MEMORY,
    )


def train_redux(run: Run) -> None:
    """Train an image encoder whose tokens steer the base, and write its folder."""
    training = ReduxTraining(
        base_encoders(run.base).on(run.device),
        base_transformer(run.base),
        device=run.device,
        tokens=run.tokens,
        memory=MEMORY,
    )
    trained = training.run(run.seconds, run.report, checkpoint=run.work / "redux.pt", save_every=60)
    assert isinstance(trained, ReduxModel)
    export_redux(run.out / f"{run.base.name}-redux", trained.cpu(), run.base)


def train_adapter(name: str, run: Run) -> None:
    """Train an adapter and write it in both layouts."""
    recipe = Recipe({}, DRAWS[name])
    training = flow_training(adapted(base_transformer(run.base)), recipe, run, LR_ADAPTER)
    trained = training.run(run.seconds, run.report, checkpoint=run.work / f"{name}.pt", save_every=60)
    save_adapter(trained.cpu(), run.out / "loras", name)


def train_controlnet(run: Run) -> None:
    """Train a ControlNet for edge pictures and write its folder."""
    start = base_transformer(run.base)
    training = flow_training(WithControlNet(start, new_controlnet(start)), Recipe({}, draw_edges), run)
    trained = training.run(run.seconds, run.report, checkpoint=run.work / "controlnet.pt", save_every=60)
    export_controlnet(run.out / f"{run.base.name}-controlnet-canny", trained.controlnet.cpu())


def train_depth_estimator(run: Run) -> None:
    """Train what tells how near things are in a plain picture, and write it into the depth sibling's folder."""
    training = DepthTraining(base_encoders(run.base).on(run.device), device=run.device, memory=MEMORY)
    trained = training.run(run.seconds, run.report, checkpoint=run.work / "depth-estimator.pt", save_every=60)
    assert isinstance(trained, DepthAnythingForDepthEstimation)
    export_estimator(run.out / f"{run.base.name}-depth" / "depth_estimator", trained.cpu())


TRAINERS: dict[str, Callable[[Run], None]] = {
    **{name: partial(train_transformer, name) for name in RECIPES},
    "redux": train_redux,
    **{name: partial(train_adapter, name) for name in DRAWS},
    "controlnet": train_controlnet,
    "depth-estimator": train_depth_estimator,
}


def main() -> None:
    """Train one sibling, with a progress bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=list(TRAINERS))
    parser.add_argument("--base", type=Path, default=BASE, help="the pipeline folder to start from")
    parser.add_argument("--out", type=Path, default=BASE.parent, help="the folder to write the sibling into")
    parser.add_argument("--work", type=Path, default=Path(".shapes-work"), help="checkpoints; delete to start anew")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--tokens", type=int, default=64 * 64, help="image tokens a step; 65536 suits a GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"), TimeElapsedColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(arguments.name, total=1.0, figures="")

        def report(done: float, figures: dict[str, float]) -> None:
            text = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            progress.update(task, completed=done, figures=text)

        TRAINERS[arguments.name](
            Run(
                arguments.base,
                arguments.out,
                arguments.work,
                arguments.minutes * 60,
                arguments.tokens,
                torch.device(arguments.device),
                report,
            )
        )


if __name__ == "__main__":
    main()
