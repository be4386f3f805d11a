"""Train a sibling of flux-shapes from its weights: `python -m models.shapes.train_siblings kontext --minutes 25`.

Writes the sibling's folder beside the one that it starts from; resumes from `--work`.
"""

import argparse
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import FluxTransformer2DModel
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from torch import nn
from transformers import CLIPTextModel, DepthAnythingForDepthEstimation, SiglipVisionModel, T5EncoderModel

from models.shapes.bars import Bars, Report
from models.shapes.export import export_controlnet, export_estimator, export_redux, export_sibling
from models.shapes.fast import Fast, Feed, Plan
from models.shapes.siblings.control import CHANNELS as CONTROL_CHANNELS
from models.shapes.siblings.control import (
    WithControlNet,
    draw_controlled,
    draw_edges,
    new_controlnet,
    plan_controls,
    plan_edges,
)
from models.shapes.siblings.depth import DepthTraining
from models.shapes.siblings.edits import draw_edits, plan_edits
from models.shapes.siblings.fill import CHANNELS as FILL_CHANNELS
from models.shapes.siblings.fill import draw_fillings, gathered_mask, plan_fillings, spread_mask
from models.shapes.siblings.lora import DRAWS, PLANS, adapted, save_adapter
from models.shapes.siblings.questions import Asked, AskedTraining
from models.shapes.siblings.redux import ReduxModel, ReduxTraining, plan_sights
from models.shapes.siblings.rehearsal import EditTraining
from models.shapes.siblings.widen import widened
from models.shapes.text import Encoders
from models.shapes.tokens import load_tokenizers
from models.shapes.train_flow import NEVER, Draw, FlowTraining

Model = TypeVar("Model", bound=nn.Module)
BASE = Path(__file__).parent / "flux-shapes"
PEAK = 0.4  # of the learning rates that a transformer starts with from nothing
# Short runs at the base's own 0.02 blur the shapes that it draws; new input columns and norms are AdamW's and go on.
LR_MUON = 0.005
LR_ADAPTER = 0.03  # an adapter starts at zero and has the base's shapes to lean on
# With workers, steps are larger and there are many more of them: rates from which a long cosine comes down.
FED_PEAK, FED_LR_MUON = 1.0, 0.01
MEMORY = 0.995  # of the averaged weights: these runs are short


@dataclass(frozen=True)
class Recipe:
    """A sibling whose transformer is trained: what it is shown, and its folders with the classes that open them.

    Of several folders all but the first link to its transformer. Guidance is taught from the fraction `guided_from` of
    the run.
    """

    folders: Mapping[str, str]
    draw: Draw
    plan: Plan
    channels: int = 0  # more than the base's
    guided_from: float = 0.6
    with_reference: bool = False
    is_asked: bool = True  # questions, see `siblings.questions`
    finish: Callable[[FluxTransformer2DModel], FluxTransformer2DModel] | None = None  # before it is written
    resume: Callable[[FluxTransformer2DModel], FluxTransformer2DModel] | None = None  # the inverse


RECIPES = {
    "kontext": Recipe(  # guided edits moved colours too far
        {"kontext": "FluxKontextPipeline"}, draw_edits, plan_edits, guided_from=NEVER, with_reference=True
    ),
    "fill": Recipe(
        {"fill": "FluxFillPipeline"},
        draw_fillings,
        plan_fillings,
        FILL_CHANNELS,
        finish=spread_mask,
        resume=gathered_mask,
    ),
    "control": Recipe(
        {"canny": "FluxControlPipeline", "depth": "FluxControlPipeline"},
        draw_controlled,
        plan_controls,
        CONTROL_CHANNELS,
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
    start: Path | None = None  # a checkpoint, or a sibling's folder, whose weights are trained on by a new schedule
    workers: int = 0  # processes that draw; with none the training draws by itself
    record: bool = True  # steps on a GPU, see `fast`
    rate: float = 1.0  # of the learning rates
    exports: int = 1  # the last one when the run ends
    save_every: float = 60

    def go(self, training: FlowTraining, name: str, export: Callable[[nn.Module], None]) -> None:
        """Train, and export the average on the way and at the end."""

        def keep(average: nn.Module) -> dict[str, float]:
            export(copy.deepcopy(average).cpu())
            return {}

        trained = training.run(
            self.seconds,
            self.report,
            checkpoint=self.work / f"{name}.pt",
            save_every=self.save_every,
            score=keep if self.exports > 1 else None,
            scores=self.exports,
        )
        export(trained.cpu())

    def fast(self, plan: Plan, encoders: Encoders) -> Fast | None:
        """Processes that draw, if any are asked for; before anything is on the GPU."""
        return Fast(Feed(plan, encoders, self.workers), self.record) if self.workers else None

    def started(self, model: Model) -> Model:
        """The model with the weights of a checkpoint to start from, if one is given; all else in it stays."""
        if self.start is None or self.start.is_dir():
            return model
        state = torch.load(self.start, map_location="cpu", weights_only=False)
        found = model.load_state_dict(state.get("average", state), strict=False)
        if found.unexpected_keys:
            raise ValueError(f"{self.start} belongs to another model: it has {found.unexpected_keys[0]}")
        return model


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
    training = flow_training(first_weights(recipe, run), recipe, run)
    folders = [run.out / f"{run.base.name}-{suffix}" for suffix in recipe.folders]

    def export(trained: nn.Module) -> None:
        trained = trained.model if isinstance(trained, Asked) else trained
        assert isinstance(trained, FluxTransformer2DModel)
        trained = recipe.finish(trained) if recipe.finish else trained
        for folder, pipeline in zip(folders, recipe.folders.values(), strict=True):
            export_sibling(folder, trained, run.base, pipeline, like=folders[0] if folder != folders[0] else None)

    run.go(training, name, export)


def first_weights(recipe: Recipe, run: Run) -> FluxTransformer2DModel:
    """What a run starts from: the base with more inputs, or the sibling in the folder that it was given."""
    if run.start is not None and run.start.is_dir():
        written = base_transformer(run.start)
        return (recipe.resume(written) if recipe.resume else written).train()
    base = base_transformer(run.base)
    return widened(base, recipe.channels) if recipe.channels else base


def flow_training(model: nn.Module, recipe: Recipe, run: Run, lr_muon: float | None = None) -> FlowTraining:
    """A training of `model` by a recipe, with the base's encoders."""
    encoders = base_encoders(run.base)
    fast = run.fast(recipe.plan, encoders)
    if recipe.is_asked:
        assert isinstance(model, FluxTransformer2DModel)
        model = Asked(model, model)
    kind = partial(EditTraining, base=base_transformer(run.base)) if recipe.with_reference else AskedTraining
    return kind(
        encoders.on(run.device),
        device=run.device,
        tokens=run.tokens,
        model=run.started(model),
        draw=recipe.draw,
        guided_from=recipe.guided_from,
        peak=(FED_PEAK if fast else PEAK) * run.rate,
        lr_muon=(FED_LR_MUON if fast else LR_MUON) if lr_muon is None else lr_muon,
        memory=MEMORY,
        fast=fast,
        with_reference=recipe.with_reference,
    )


def train_redux(run: Run) -> None:
    """Train an image encoder whose tokens steer the base, and write its folder."""
    encoders = base_encoders(run.base)
    fast = run.fast(plan_sights, encoders)
    training = ReduxTraining(
        encoders.on(run.device),
        base_transformer(run.base),
        run.started(first_encoder(run)),
        device=run.device,
        tokens=run.tokens,
        memory=MEMORY,
        peak=run.rate,
        learned=run.start is not None,  # and need no writer
        fast=fast,
    )

    def export(trained: nn.Module) -> None:
        assert isinstance(trained, ReduxModel)
        export_redux(run.out / f"{run.base.name}-redux", trained, run.base)

    run.go(training, "redux", export)


def first_encoder(run: Run) -> ReduxModel:
    """A fresh image encoder, or that of the folder that a run was given."""
    model = ReduxModel()
    if run.start is not None and run.start.is_dir():
        written = SiglipVisionModel.from_pretrained(run.start / "image_encoder")
        model.image_encoder.load_state_dict(written.state_dict())
        embedder = ReduxImageEncoder.from_pretrained(run.start / "image_embedder")
        model.image_embedder.load_state_dict(embedder.state_dict())
    return model


def train_adapter(name: str, run: Run) -> None:
    """Train an adapter and write it in both layouts."""
    recipe = Recipe({}, DRAWS[name], PLANS[name], guided_from=0.4, is_asked=False)
    training = flow_training(adapted(base_transformer(run.base)), recipe, run, LR_ADAPTER)

    def export(trained: nn.Module) -> None:
        assert isinstance(trained, FluxTransformer2DModel)
        save_adapter(trained, run.out / "loras", name)

    run.go(training, name, export)


def train_controlnet(run: Run) -> None:
    """Train a ControlNet for edge pictures and write its folder."""
    start = base_transformer(run.base)
    model = WithControlNet(start, new_controlnet(start))
    training = flow_training(model, Recipe({}, draw_edges, plan_edges, guided_from=0.4, is_asked=False), run)

    def export(trained: nn.Module) -> None:
        assert isinstance(trained, WithControlNet)
        export_controlnet(run.out / f"{run.base.name}-controlnet-canny", trained.controlnet)

    run.go(training, "controlnet", export)


def train_depth_estimator(run: Run) -> None:
    """Train what tells how near things are in a plain picture, and write it into the depth sibling's folder."""
    training = DepthTraining(base_encoders(run.base).on(run.device), device=run.device, memory=MEMORY)

    def export(trained: nn.Module) -> None:
        assert isinstance(trained, DepthAnythingForDepthEstimation)
        export_estimator(run.out / f"{run.base.name}-depth" / "depth_estimator", trained)

    run.go(training, "depth-estimator", export)


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
    parser.add_argument("--tokens", type=int, default=64 * 64, help="image tokens a step; 24576 suits a GPU")
    parser.add_argument("--start", type=Path, help="a checkpoint, or a sibling's folder, to train on by a new schedule")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw for a GPU; 2 keep one busy")
    parser.add_argument("--rate", type=float, default=1.0, help="of the learning rates")
    parser.add_argument("--no-record", action="store_true", help="launch every step anew, should CUDA graphs fail")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    foldered = (*RECIPES, "redux")
    if arguments.start is not None and arguments.start.is_dir() and arguments.name not in foldered:
        parser.error(f"--start takes a folder for {', '.join(foldered)}; give a checkpoint (.pt) for {arguments.name}")
    with Bars() as bars:
        TRAINERS[arguments.name](
            Run(
                arguments.base,
                arguments.out,
                arguments.work,
                arguments.minutes * 60,
                arguments.tokens,
                torch.device(arguments.device),
                bars.bar(arguments.name),
                start=arguments.start,
                workers=arguments.workers,
                record=not arguments.no_record,
                rate=arguments.rate,
            )
        )


if __name__ == "__main__":
    main()
