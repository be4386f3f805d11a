"""Train flux2-shapes: `python -m models.shapes.flux2.train --out models/shapes/flux2-shapes --minutes 90`.

Text encoder, transformer, folder; every part resumes from its checkpoint. The codec and the safety classifier are those
of flux-shapes, and its transformer is the teacher.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from models.shapes.flux2.export import export_klein
from models.shapes.flux2.flow import AsFlux1, new_transformer
from models.shapes.flux2.text import KleinText, new_text
from models.shapes.flux2.train_text import train_text
from models.shapes.flux2.training import KleinTraining
from models.shapes.train_siblings import base_encoders, base_transformer

BASE = Path(__file__).parents[1] / "flux-shapes"

Report = Callable[[float, dict[str, float]], None]


def text_from(work: Path, steps: int, device: torch.device, report: Report) -> KleinText:
    """The trained text encoder of an earlier run in `work`, or a new one."""
    file = work / "klein-text.pt"
    if not file.exists():
        trained = train_text(steps, report, device=device)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(trained.encoder.state_dict(), file)
    text = new_text()
    text.encoder.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    text.encoder.eval().requires_grad_(False)
    return text.on(device)


def train_transformer(
    text: KleinText, seconds: float, work: Path, device: torch.device, tokens: int, base: Path, report: Report
) -> AsFlux1:
    """Resumed from its checkpoint; the teacher is the transformer of `base`."""
    model = AsFlux1(new_transformer())
    training = KleinTraining(text, model, base_transformer(base), base_encoders(base), device=device, tokens=tokens)
    trained = training.run(seconds, report, checkpoint=work / "klein.pt")
    assert isinstance(trained, AsFlux1)
    return trained


def main() -> None:
    """Train all parts in order, with a progress bar each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the pipeline folder to write")
    parser.add_argument(
        "--base", type=Path, default=BASE, help="the teacher, whose codec and safety classifier it takes"
    )
    parser.add_argument("--work", type=Path, default=Path(".shapes-work"), help="checkpoints; delete to start anew")
    parser.add_argument("--minutes", type=float, default=90, help="for the transformer")
    parser.add_argument("--text-steps", type=int, default=1500)
    parser.add_argument("--tokens", type=int, default=64 * 64, help="image tokens a step; 65536 suits a GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"), TimeElapsedColumn())
    with Progress(*columns) as progress:

        def bar(title: str) -> Report:
            task = progress.add_task(title, total=1.0, figures="")

            def report(done: float, figures: dict[str, float]) -> None:
                text = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
                progress.update(task, completed=done, figures=text)

            return report

        text = text_from(arguments.work, arguments.text_steps, device, bar("text encoder"))
        seconds, base = arguments.minutes * 60, arguments.base
        shown = bar("transformer")
        trained = train_transformer(text, seconds, arguments.work, device, arguments.tokens, base, shown)
    text.on(torch.device("cpu"))
    export_klein(arguments.out, trained.transformer.cpu(), text, arguments.base)


if __name__ == "__main__":
    main()
