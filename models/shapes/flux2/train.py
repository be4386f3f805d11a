"""Train flux2-shapes: `python -m models.shapes.flux2.train --out models/shapes/flux2-shapes --minutes 90`.

Text encoder, transformer, the transformer again with a teacher, folder; every part resumes from its checkpoint. The
codec and the safety classifier are those of flux-shapes.
"""

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

from models.shapes.flux2.export import export_klein
from models.shapes.flux2.flow import AsFlux1, new_transformer
from models.shapes.flux2.text import KleinText, new_text
from models.shapes.flux2.train_text import train_text
from models.shapes.flux2.training import KleinTraining

BASE = Path(__file__).parents[1] / "flux-shapes"
PLAIN_SHARE = 0.75  # of the time; the rest is with a teacher

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
    text: KleinText, seconds: float, work: Path, device: torch.device, tokens: int, bar: Callable[[str], Report]
) -> AsFlux1:
    """Both parts, each resumed from its checkpoint."""
    plain = KleinTraining(text, AsFlux1(new_transformer()), device=device, tokens=tokens)
    teacher = plain.run(seconds * PLAIN_SHARE, bar("transformer"), checkpoint=work / "klein.pt")
    student: nn.Module = copy.deepcopy(teacher).requires_grad_(True)
    taught = KleinTraining(text, student, teacher, device=device, tokens=tokens)
    trained = taught.run(seconds * (1 - PLAIN_SHARE), bar("with a teacher"), checkpoint=work / "klein-taught.pt")
    assert isinstance(trained, AsFlux1)
    return trained


def main() -> None:
    """Train all parts in order, with a progress bar each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the pipeline folder to write")
    parser.add_argument("--base", type=Path, default=BASE, help="whose codec and safety classifier it takes")
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
        trained = train_transformer(text, arguments.minutes * 60, arguments.work, device, arguments.tokens, bar)
    text.on(torch.device("cpu"))
    export_klein(arguments.out, trained.transformer.cpu(), text, arguments.base)


if __name__ == "__main__":
    main()
