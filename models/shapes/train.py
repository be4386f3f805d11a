"""Retrain everything from nothing: `python -m models.shapes.train --out models/shapes/flux-shapes --minutes 90`.

Text encoders, codec, transformer, safety classifier, folder, curves; every part resumes from its checkpoint. On
several cores or GPUs the transformer's part can be shared: `torchrun --nproc-per-node 2 -m models.shapes.train ...`.
"""

import argparse
import os
import random
from pathlib import Path

import torch
from transformers import CLIPTextModel, T5EncoderModel

from models.shapes.bars import Bars, Report
from models.shapes.curves import draw_curves
from models.shapes.evaluate import quick_rates
from models.shapes.export import export, export_sibling
from models.shapes.flow import without_guidance
from models.shapes.safety import new_processor
from models.shapes.text import Encoders
from models.shapes.together import Together
from models.shapes.tokens import load_tokenizers
from models.shapes.train_flow import FlowTraining
from models.shapes.train_safety import generated_pictures, train_safety
from models.shapes.train_text import train_text
from models.shapes.train_vae import train_vae

# Shares of the time budget; text and safety are counted in steps and take some minutes on a CPU.
CODEC_SHARE, FLOW_SHARE = 0.3, 0.7
SCHNELL_GUIDANCE = 3.5  # what the sibling for few steps is fixed at


def encoders_from(work: Path, steps: int, device: torch.device, report: Report) -> Encoders:
    """Trained text encoders: those of an earlier run in `work`, or new ones."""
    folder = work / "text"
    if not (folder / "text_encoder_2").exists():
        made = train_text(steps, report, device=device)
        made.clip_tokenizer.save_pretrained(folder / "tokenizer")
        made.t5_tokenizer.save_pretrained(folder / "tokenizer_2")
        made.clip.save_pretrained(folder / "text_encoder")
        made.t5.save_pretrained(folder / "text_encoder_2")
    clip = CLIPTextModel.from_pretrained(folder / "text_encoder").to(device).eval().requires_grad_(False)
    t5 = T5EncoderModel.from_pretrained(folder / "text_encoder_2").to(device).eval().requires_grad_(False)
    return Encoders(clip, t5, *load_tokenizers(folder))


def add_safety(folder: Path, pictures: int, steps: int, report: Report) -> None:
    """Train the safety classifier on drawings and on pictures of the pipeline in the folder; save it there."""
    generated = generated_pictures(folder, pictures, random.Random(6))
    train_safety(generated, report, steps=steps).save_pretrained(folder / "safety_checker")
    new_processor().save_pretrained(folder / "safety_checker")


def main() -> None:
    """Train all parts in order, with a progress bar each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the pipeline folder to write")
    parser.add_argument("--work", type=Path, default=Path(".shapes-work"), help="checkpoints; delete to start anew")
    parser.add_argument("--minutes", type=float, default=90, help="for codec and transformer together")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tokens", type=int, default=64 * 64, help="image tokens a step; 65536 suits a GPU")
    parser.add_argument("--text-steps", type=int, default=500)
    parser.add_argument("--safety-steps", type=int, default=1500)
    parser.add_argument("--safety-pictures", type=int, default=360, help="generated ones, beside endless drawings")
    parser.add_argument("--score-prompts", type=int, default=32, help="for each point of the score curve")
    parser.add_argument("--curves", type=Path, default=Path("docs/shapes-curves.png"))
    arguments = parser.parse_args()
    name = arguments.device if arguments.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name == "cuda" else name)
    together, seconds = Together(), arguments.minutes * 60
    with Bars(disable=together.rank > 0) as bars:
        encoders = encoders_from(arguments.work, arguments.text_steps, device, bars.bar("text encoders"))
        vae = train_vae(seconds * CODEC_SHARE, bars.bar("codec"), device=device, checkpoints=arguments.work)
        flow = FlowTraining(encoders, device=device, tokens=arguments.tokens)
        checkpoint = arguments.work / "flow.pt"
        transformer = flow.run(
            seconds * FLOW_SHARE,
            bars.bar("transformer"),
            checkpoint=checkpoint,
            score=lambda model: quick_rates(model, vae, encoders, count=arguments.score_prompts),
        ).cpu()
        if together.rank == 0:
            export(arguments.out, transformer, vae.cpu(), encoders.on(torch.device("cpu")))
            report = bars.bar("safety classifier")
            add_safety(arguments.out, arguments.safety_pictures, arguments.safety_steps, report)
            sibling = arguments.out.with_name(f"{arguments.out.name}-schnell")
            export_sibling(sibling, without_guidance(transformer, SCHNELL_GUIDANCE), arguments.out)
            draw_curves(flow.history, arguments.curves, flow.scores)


if __name__ == "__main__":
    main()
