"""What this machine's libraries and devices are, and whether checkpoints can be loaded: `python -m models.examine`.

Prints one JSON object a line: the facts first, then one for each argument. Run by `doctor` as a child, so that a broken
driver or library ends the child.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import diffusers
import torch
import transformers

from models.accelerator import gpu_facts
from models.arguments import resolve
from models.auxiliaries import check_auxiliary
from models.errors import LoadError
from models.loading import silence_libraries
from models.recipes import recipe_of
from models.registry import ModelSpec


def facts() -> dict[str, object]:
    """Versions and GPUs."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "gpus": gpu_facts(),
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }


def check(spec: ModelSpec) -> None:
    """Everything that loading checks, of weights those of the VAE alone. Raises: LoadError."""
    if spec.source.startswith("random:"):
        return
    if not spec.draws:
        check_auxiliary(spec)
    else:
        recipe_of(spec).open(spec).parts["vae"].check_numbers()


def main(argv: Sequence[str]) -> None:
    """Print what is found."""
    parser = argparse.ArgumentParser(prog="python -m models.examine")
    parser.add_argument("--model-dir", type=Path, action="append", default=[], help="where single files are sought")
    parser.add_argument("model", nargs="*")
    arguments = parser.parse_args(argv)
    silence_libraries()
    print(json.dumps(facts()), flush=True)
    for argument in arguments.model:
        error = None
        try:
            check(resolve(argument, arguments.model_dir))
        except LoadError as exc:
            error = str(exc)
        print(json.dumps({"model": argument, "error": error}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
