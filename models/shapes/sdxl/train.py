"""Train sdxl-shapes: `python -m models.shapes.sdxl.train --out models/shapes/sdxl-shapes --minutes 90`, or by torchrun.

Second text encoder, UNet, two folders that share their weights; every part resumes from its checkpoint. The codec, the
first text encoder and the safety classifier are those of flux-shapes, and its transformer is the teacher.
"""

import argparse
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModelWithProjection

from models.shapes.bars import Bars, Report
from models.shapes.sdxl.export import export_sdxl
from models.shapes.sdxl.text import SdxlText, new_text
from models.shapes.sdxl.train_text import train_text
from models.shapes.sdxl.training import SdxlTraining
from models.shapes.sdxl.unet import AsFlow, new_unet
from models.shapes.together import Together
from models.shapes.train_siblings import base_encoders, base_transformer

BASE = Path(__file__).parents[1] / "flux-shapes"


KNOWN = 0.45  # of the curriculum: where a written folder goes on, with all kinds of scenes


def text_from(
    base: Path, work: Path, steps: int, device: torch.device, report: Report, start: Path | None = None
) -> SdxlText:
    """The text encoder of the folder `start`, of an earlier run in `work`, or a trained one, beside `base`'s CLIP."""
    file, text = work / "sdxl-text.pt", new_text(base_encoders(base)).on(device)
    if start is not None:
        written = CLIPTextModelWithProjection.from_pretrained(start / "text_encoder_2")
        text.second.load_state_dict(written.state_dict())
        text.second.eval().requires_grad_(False)
    elif file.exists():
        text.second.load_state_dict(torch.load(file, map_location=device, weights_only=True))
        text.second.eval().requires_grad_(False)
    else:
        train_text(text, steps, report, device=device)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(text.second.state_dict(), file)
    return text


def unet_from(folder: Path) -> AsFlow:
    """The UNet of a written folder, as it is trained."""
    return AsFlow.of_stock(UNet2DConditionModel.from_pretrained(folder / "unet").float())


def main() -> None:
    """Train all parts in order, with a progress bar each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; NAME-lightning goes beside it")
    parser.add_argument("--base", type=Path, default=BASE, help="the teacher, whose codec it takes, too")
    parser.add_argument("--work", type=Path, default=Path(".shapes-work"), help="checkpoints; delete to start anew")
    parser.add_argument("--minutes", type=float, default=90, help="for the UNet")
    parser.add_argument("--start", type=Path, help="a written folder whose weights to train on by a new schedule")
    parser.add_argument("--text-steps", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=32 * 64, help="image tokens a step; 65536 suits a GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device, base = torch.device(arguments.device), arguments.base
    together = Together()
    with Bars(disable=together.rank > 0) as bars:
        shown, start = bars.bar("text encoder"), arguments.start
        text = text_from(base, arguments.work, arguments.text_steps, device, shown, start)
        training = SdxlTraining(
            text,
            unet_from(start) if start else AsFlow(new_unet()),
            base_transformer(base),
            base_encoders(base),
            device=device,
            tokens=arguments.tokens,
            known=KNOWN if start else 0.0,
        )
        trained = training.run(arguments.minutes * 60, bars.bar("UNet"), checkpoint=arguments.work / "sdxl.pt")
    assert isinstance(trained, AsFlow)
    if together.rank == 0:
        export_sdxl(arguments.out, trained.cpu().stock(), text.on(torch.device("cpu")), base)


if __name__ == "__main__":
    main()
