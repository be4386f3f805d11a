"""Train flux2-shapes: `python -m models.shapes.flux2.train --out models/shapes/flux2-shapes --minutes 90`.

Text encoder, then transformer and text encoder together, folder; every part resumes from its checkpoint. The codec and
the safety classifier are those of flux-shapes, and its transformer is teacher and start.
"""

import argparse
import random
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from models.shapes.bars import Bars, Report
from models.shapes.flux2.export import export_klein
from models.shapes.flux2.flow import AsFlux1, new_transformer
from models.shapes.flux2.graft import grafted
from models.shapes.flux2.text import KleinText, new_text
from models.shapes.flux2.train_text import train_text
from models.shapes.flux2.training import GUIDANCE, KleinTraining
from models.shapes.scenes import EVERY_KIND
from models.shapes.siblings.questions import Asked
from models.shapes.text import Encoders
from models.shapes.train_flow import make_batch
from models.shapes.train_siblings import base_encoders, base_transformer

BASE = Path(__file__).parents[1] / "flux-shapes"


def text_from(
    work: Path, steps: int, teacher: FluxTransformer2DModel, read: Encoders, device: torch.device, report: Report
) -> tuple[KleinText, Tensor]:
    """The trained text encoder of an earlier run in `work`, or a new one, and the matrix that reads it."""
    file = work / "klein-text.pt"
    if not file.exists():
        embedder = teacher.context_embedder.to(device)
        trained, matrix = train_text(steps, report, read=read.on(device), embedder=embedder, device=device)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"encoder": trained.encoder.state_dict(), "matrix": matrix}, file)
    text, state = new_text(), torch.load(file, map_location="cpu", weights_only=True)
    text.encoder.load_state_dict(state["encoder"])
    return text.on(device), state["matrix"]


def started(text: KleinText, matrix: Tensor, teacher: FluxTransformer2DModel, read: Encoders) -> AsFlux1:
    """A transformer with its teacher's weights as far as they fit, and the text encoder that it reads."""
    transformer = new_transformer()
    device = read.device
    shown = make_batch(read.on(torch.device("cpu")), random.Random(0), EVERY_KIND, (512, 512), 128)
    grafted(teacher.cpu(), transformer, shown, GUIDANCE)
    read.on(device)
    with torch.no_grad():
        transformer.context_embedder.weight.copy_(matrix)
    return AsFlux1(transformer, text)


def asked(model: AsFlux1) -> Asked:
    """With the questions that edits are learned by."""
    return Asked(model, model.transformer)


def main() -> None:
    """Train all parts in order, with a progress bar each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the pipeline folder to write")
    parser.add_argument(
        "--base", type=Path, default=BASE, help="the teacher, whose codec and safety classifier it takes"
    )
    parser.add_argument("--work", type=Path, default=Path(".shapes-work"), help="checkpoints; delete to start anew")
    parser.add_argument("--minutes", type=float, default=90, help="for the transformer")
    parser.add_argument("--text-steps", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=32 * 64, help="image tokens a step; 65536 suits a GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    teacher, read = base_transformer(arguments.base).requires_grad_(False), base_encoders(arguments.base)
    work: Path = arguments.work
    with Bars() as bars:
        shown = bars.bar("text encoder")
        text, matrix = text_from(work, arguments.text_steps, teacher, read, device, shown)
        model = asked(started(text, matrix, teacher, read))
        training = KleinTraining(text, model, teacher, read, device=device, tokens=arguments.tokens)
        trained = training.run(arguments.minutes * 60, bars.bar("transformer"), checkpoint=work / "klein.pt")
    assert isinstance(trained, Asked)
    assert isinstance(trained.model, AsFlux1)
    editor = trained.model.cpu()
    export_klein(arguments.out, editor.transformer, editor.text_of(text), arguments.base)


if __name__ == "__main__":
    main()
