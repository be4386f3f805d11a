"""What a C2PA signature costs a picture: encoding with and without, by format.

    python -m benchmarks.credentials CHAIN.pem KEY.pem [--side 1024] [--repeat 20]

A noisy picture, in this process, wall and processor milliseconds at the median. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from PIL import Image

from server.bench.stamp import stamp
from server.files.content_credentials import read
from server.files.encoding import ImageFormat, encode
from server.files.provenance import Provenance

MADE = Provenance("fluxserve 1", "FLUX.1-dev", "fal-ai/flux/dev", "request")


def timed(call: Callable[[], bytes], repeat: int) -> dict[str, float]:
    """Milliseconds at the median, by the clock and of the processor."""
    taken, worked = [], []
    for _ in range(repeat):
        began, began_cpu = time.perf_counter(), time.process_time()
        call()
        taken.append((time.perf_counter() - began) * 1e3)
        worked.append((time.process_time() - began_cpu) * 1e3)
    return {"p50_ms": round(statistics.median(taken), 1), "cpu_ms": round(statistics.median(worked), 1)}


def main() -> None:
    """Encode, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("chain", type=Path)
    parser.add_argument("key", type=Path)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--repeat", type=int, default=20)
    asked = parser.parse_args()
    credentials = read(asked.chain, asked.key)
    pixels = Image.effect_noise((asked.side, asked.side), 50).convert("RGB").tobytes()
    figures: dict[str, dict[str, dict[str, float]]] = {}
    kinds: tuple[ImageFormat, ...] = get_args(ImageFormat)
    for kind in kinds:
        plain = timed(lambda: encode(pixels, asked.side, asked.side, kind, MADE), asked.repeat)  # noqa: B023
        signed = timed(lambda: encode(pixels, asked.side, asked.side, kind, MADE, credentials), asked.repeat)  # noqa: B023
        figures[kind] = {"without": plain, "with": signed}
    print(json.dumps({"side": asked.side, **figures, **stamp()}))


if __name__ == "__main__":
    main()
