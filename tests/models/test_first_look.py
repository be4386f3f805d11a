"""What holds no FLUX.1 is refused at first sight, in one sentence that says what it is, without torch."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.wrong_files import CORPUS
from models import first_look as first_look_module
from models.arguments import resolve
from models.errors import LoadError
from models.first_look import first_look
from models.registry import REGISTRY

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", CORPUS)
def test_a_wrong_file_is_refused_at_first_sight_by_what_it_is(tmp_path: Path, kind: str) -> None:
    name, make, words = CORPUS[kind]
    make(tmp_path / name)
    with pytest.raises(LoadError, match=words) as caught:
        first_look(resolve(str(tmp_path / name)))
    assert "\n" not in str(caught.value)
    assert str(tmp_path.parent) not in str(caught.value)


def test_the_embedded_checkpoints_pass() -> None:
    for spec in REGISTRY.values():
        first_look(spec)


def test_a_gguf_file_is_looked_at_without_torch(tmp_path: Path) -> None:
    name, make, _ = CORPUS["GGUF of a language model"]
    make(tmp_path / name)
    code = (
        "import sys; from models.arguments import resolve; from models.first_look import first_look\n"
        f"spec = resolve({str(tmp_path / name)!r})\n"
        "try: first_look(spec)\n"
        "except Exception as exc: print(type(exc).__name__, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "LoadError False"


def test_a_folder_that_may_not_be_read_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who runs the tests may read everything where that is root."""

    def refuse(*given: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/secret/model_index.json")

    monkeypatch.setattr(first_look_module, "check_folder", refuse)
    with pytest.raises(LoadError, match=r"^model flux-shapes cannot be read \(Permission denied\)\.$"):
        first_look(resolve("flux-shapes"))
