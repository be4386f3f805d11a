"""Retrain everything from nothing: `python -m models.shapes.train --out models/shapes/flux-shapes --minutes 90`.

Text encoders, codec, transformer, safety classifier, folder, curves; every part resumes from its checkpoint. On
several cores or GPUs the transformer's part can be shared: `torchrun --nproc-per-node 2 -m models.shapes.train ...`.
"""

import argparse
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import CLIPTextModel, ResNetForImageClassification, T5EncoderModel

from models.shapes.curves import draw_curves
from models.shapes.export import export
from models.shapes.safety import new_processor
from models.shapes.text import Encoders
from models.shapes.together import Together
from models.shapes.tokens import load_tokenizers
from models.shapes.train_flow import FlowTraining
from models.shapes.train_safety import decoded_pictures, generated_pictures, train_safety
from models.shapes.train_text import train_text
from models.shapes.train_vae import train_vae

Report = Callable[[float, dict[str, float]], None]
# Shares of the time budget; text and safety are counted in steps and take a few minutes on a CPU.
CODEC_SHARE, FLOW_SHARE = 0.3, 0.7
TEXT_STEPS, SAFETY_PICTURES, SAFETY_STEPS = 500, 480, 500


def encoders_from(work: Path, device: torch.device, report: Report) -> Encoders:
    """Trained text encoders: those of an earlier run in `work`, or new ones."""
    folder = work / "text"
    if not (folder / "text_encoder_2").exists():
        made = train_text(TEXT_STEPS, report, device=device)
        made.clip_tokenizer.save_pretrained(folder / "tokenizer")
        made.t5_tokenizer.save_pretrained(folder / "tokenizer_2")
        made.clip.save_pretrained(folder / "text_encoder")
        made.t5.save_pretrained(folder / "text_encoder_2")
    clip = CLIPTextModel.from_pretrained(folder / "text_encoder").to(device).eval().requires_grad_(False)
    t5 = T5EncoderModel.from_pretrained(folder / "text_encoder_2").to(device).eval().requires_grad_(False)
    return Encoders(clip, t5, *load_tokenizers(folder))


def add_safety(folder: Path, vae: AutoencoderKL, report: Report) -> None:
    """Train the safety classifier on this codec's pictures and save it into the folder."""
    decoded = decoded_pictures(vae.cpu(), SAFETY_PICTURES, random.Random(5))
    generated = generated_pictures(folder, SAFETY_PICTURES // 2, random.Random(6))
    model: ResNetForImageClassification = train_safety([decoded, generated], report, steps=SAFETY_STEPS)
    model.save_pretrained(folder / "safety_checker")
    new_processor().save_pretrained(folder / "safety_checker")


def main() -> None:
    """Train all parts in order, with a progress bar each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the pipeline folder to write")
    parser.add_argument("--work", type=Path, default=Path(".shapes-work"), help="checkpoints; delete to start anew")
    parser.add_argument("--minutes", type=float, default=90, help="for codec and transformer together")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tokens", type=int, default=64 * 64, help="image tokens a step; 65536 suits a GPU")
    parser.add_argument("--curves", type=Path, default=Path("docs/shapes-curves.png"))
    arguments = parser.parse_args()
    name = arguments.device if arguments.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name == "cuda" else name)
    together, seconds = Together(), arguments.minutes * 60
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"), TimeElapsedColumn())
    with Progress(*columns, disable=together.rank > 0) as progress:
        encoders = encoders_from(arguments.work, device, _bar(progress, "text encoders"))
        vae = train_vae(seconds * CODEC_SHARE, _bar(progress, "codec"), device=device, checkpoints=arguments.work)
        flow = FlowTraining(encoders, device=device, tokens=arguments.tokens)
        checkpoint = arguments.work / "flow.pt"
        transformer = flow.run(seconds * FLOW_SHARE, _bar(progress, "transformer"), checkpoint=checkpoint)
        if together.rank == 0:
            assert isinstance(transformer, FluxTransformer2DModel)
            export(arguments.out, transformer.cpu(), vae.cpu(), encoders.on(torch.device("cpu")))
            add_safety(arguments.out, vae, _bar(progress, "safety classifier"))
            (arguments.work / "history.json").write_text(json.dumps(flow.history))
            draw_curves(flow.history, arguments.curves)


def _bar(progress: Progress, title: str) -> Report:
    task = progress.add_task(title, total=1.0, figures="")

    def report(done: float, figures: dict[str, float]) -> None:
        text = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        progress.update(task, completed=done, figures=text)

    return report


if __name__ == "__main__":
    main()
