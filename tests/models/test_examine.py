"""The child that looks at checkpoints for the doctor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.models.conftest import copy_of
from tests.models.test_model_files import HARMLESS, TABLE

ROOT = Path(__file__).parents[2]


def examined(*arguments: str) -> list[dict[str, object]]:
    command = [sys.executable, "-m", "models.examine", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_what_cannot_be_loaded_is_found_without_loading_it(checkpoint: Path, tmp_path: Path) -> None:
    made = {}
    for number, (kind, spoil) in enumerate({**{k: s for k, (s, _) in TABLE.items()}, **HARMLESS}.items()):
        made[kind] = copy_of(checkpoint, tmp_path / str(number) / "flux")
        spoil(made[kind])
    facts, *told = examined(*(str(folder) for folder in made.values()))
    assert {"torch", "gpus", "diffusers"} <= facts.keys()
    accepted = {kind for kind, line in zip(made, told, strict=True) if line["error"] is None}
    assert accepted == set(HARMLESS)


def test_the_embedded_models_can_be_loaded_and_random_ones_need_no_files() -> None:
    _, *told = examined("flux-shapes", "flux-shapes-schnell", "random:FLUX.1-dev")
    assert [line["error"] for line in told] == [None, None, None]
