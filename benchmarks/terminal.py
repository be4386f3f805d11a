"""The README's first minute as a moving picture: its commands run for real, what they print, and what was drawn.

    python -m benchmarks.terminal docs/images/terminal.svg

The server takes the ports 8000 and 8443, which must be free. Lines appear when they did, but for pauses, which are cut
to PAUSE_S.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
URL = "http://127.0.0.1:8000"
PAUSE_S = 1.5
COLUMNS = 100
LINE_PX, LEFT_PX, TOP_PX = 19, 16, 44
PICTURE_PX = 210
PROMPTS = ("a red circle on a blue background", "two green hearts on a white background")
PROGRAM = f"""\
import fal_client
result = fal_client.subscribe("fal-ai/flux-pro", {{"prompt": "{PROMPTS[1]}"}})
print(result["images"][0]["url"])
"""
SAID = "A terminal: a server starts, curl and fal_client draw two pictures"
STYLE = """\
text { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #ddd; white-space: pre }
.typed { fill: #9cdcfe } .note { fill: #888 } .late { opacity: 0; animation: show .1s linear forwards }
@keyframes show { to { opacity: 1 } }
@media (prefers-reduced-motion: reduce) { .late { opacity: 1; animation: none } }"""


@dataclass
class Session:
    """What was seen, in order: (seconds since the begin, kind, text)."""

    seen: list[tuple[float, str, str]] = field(default_factory=list)
    pictures: list[tuple[float, bytes]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def note(self, kind: str, text: str) -> None:
        """A line that appears now; long ones are folded as a terminal does."""
        now = time.monotonic() - self.began
        self.seen += [(now, kind, part) for part in textwrap.wrap(text, COLUMNS, drop_whitespace=False) or [""]]

    def show(self, address: str) -> None:
        """A picture that appears now."""
        self.pictures.append((time.monotonic() - self.began, httpx.get(address, timeout=60).content))


@contextmanager
def serving(session: Session, folder: Path) -> Iterator[None]:
    """`fluxserve serve` until its model is loaded, its lines noted."""
    session.note("typed", "$ fluxserve serve")
    command = [str(BIN / "fluxserve"), "serve", "--data-dir", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    try:
        for line in server.stdout:
            session.note("", line.rstrip().replace(str(folder), "data"))
            if line.startswith("other clients"):
                break
        yield
    finally:
        server.terminate()
        server.wait(30)


def record() -> Session:
    """The session: a server, curl, and fal's Python client."""
    session = Session()
    with tempfile.TemporaryDirectory() as name, serving(session, Path(name)):
        body = json.dumps({"prompt": PROMPTS[0]})
        asked = f"curl -s {URL}/run/fal-ai/flux-pro -H 'Content-Type: application/json' -d '{body}'"
        session.note("typed", f"$ {asked}")
        answer = subprocess.run(["sh", "-c", asked], capture_output=True, text=True, check=True, timeout=300).stdout
        session.note("", answer.strip())
        session.show(json.loads(answer)["images"][0]["url"])
        for line in ('$ eval "$(fluxserve env --client python)"', "$ cat draw.py"):
            session.note("typed", line)
        for line in PROGRAM.splitlines():
            session.note("", line)
        session.note("typed", "$ python draw.py")
        printed = _client(Path(name))
        session.note("", printed)
        session.show(printed)
    return session


def _client(folder: Path) -> str:
    """What the program prints in a shell where `env` was evaluated."""
    command = [str(BIN / "fluxserve"), "env", "--client", "python", "--json", "--data-dir", str(folder)]
    set_up: dict[str, str] = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env=os.environ | set_up,
    )
    return done.stdout.strip()


def shortened(times: list[float]) -> dict[float, float]:
    """When each moment is shown: no pause is longer than PAUSE_S."""
    shown, last, now = {}, 0.0, 0.5
    for moment in sorted(times):
        now += min(moment - last, PAUSE_S)
        shown[moment], last = now, moment
    return shown


def drawn(session: Session) -> str:
    """The session as an SVG document that needs nothing else."""
    at = shortened([moment for moment, *_ in session.seen] + [moment for moment, _ in session.pictures])
    below = TOP_PX + len(session.seen) * LINE_PX
    width, height = LEFT_PX * 2 + round(COLUMNS * 7.85), below + PICTURE_PX * 3 // 4 + LEFT_PX
    lines = [
        f'<text {_late(at[moment], kind)} x="{LEFT_PX}" y="{TOP_PX + number * LINE_PX}">{html.escape(text)}</text>'
        for number, (moment, kind, text) in enumerate(session.seen)
    ]
    pictures = [
        _picture(number, below, content, _late(at[moment], ""))
        for number, (moment, content) in enumerate(session.pictures)
    ]
    frame = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"',
        f'role="img" aria-label="{SAID}">\n<style>\n{STYLE}\n</style>',
        f'<rect width="{width}" height="{height}" rx="8" fill="#1b1b1f"/>',
        *(f'<circle cx="{20 + 18 * k}" cy="18" r="5" fill="#555"/>' for k in range(3)),
    ]
    return "\n".join([*frame, *lines, *pictures, "</svg>\n"])


def _late(seconds: float, kind: str) -> str:
    return f'class="late {kind}" style="animation-delay:{seconds:.2f}s"'


def _picture(number: int, y: int, content: bytes, attributes: str) -> str:
    x = LEFT_PX + number * (PICTURE_PX + LEFT_PX)
    link = f"data:image/jpeg;base64,{base64.b64encode(_small(content)).decode()}"
    size = f'width="{PICTURE_PX}" height="{PICTURE_PX * 3 // 4}"'
    return f'<image {attributes} x="{x}" y="{y}" {size} href="{link}"/>'


def _small(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(content)) as picture:
        picture.convert("RGB").resize((2 * PICTURE_PX, 2 * PICTURE_PX * 3 // 4)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the README's first minute.")
    parser.add_argument("out", type=Path)
    options: Any = parser.parse_args()
    options.out.write_text(drawn(record()))
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
