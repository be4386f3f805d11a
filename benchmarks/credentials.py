"""What marking a picture costs: encoding bare, with the XMP packet, and signed by C2PA, by format.

    python -m benchmarks.credentials [CHAIN.pem KEY.pem] [--side 1024] [--repeat 20]

A noisy picture, in this process, wall and processor milliseconds at the median; `xmp_ms` and `c2pa_ms` are medians of
the differences in processor time between neighbouring runs, which other work on the machine changes least. The
signature is left out without a certificate. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

from PIL import Image

from server.bench.stamp import stamp
from server.files.content_credentials import read
from server.files.encoding import ImageFormat, encode
from server.files.provenance import Provenance

MADE = Provenance("fluxserve 1", "FLUX.1-dev", "fal-ai/flux/dev", "request")


Times = tuple[float, float]
"""Milliseconds by the clock and of the processor."""


def timed(call: Callable[[], bytes]) -> Times:
    """One call."""
    began, began_cpu = time.perf_counter(), time.process_time()
    call()
    return (time.perf_counter() - began) * 1e3, (time.process_time() - began_cpu) * 1e3


def measured(ways: dict[str, Callable[[], bytes]], repeat: int) -> dict[str, Any]:
    """Medians of every way, in turn, and of what each adds to the one before it."""
    rounds = [{name: timed(call) for name, call in ways.items()} for _ in range(repeat)]
    figures: dict[str, Any] = {}
    for name in ways:
        clock, processor = ([times[name][part] for times in rounds] for part in (0, 1))
        figures[name] = {"p50_ms": round(statistics.median(clock), 1), "cpu_ms": round(statistics.median(processor), 1)}
    for more, less in itertools.pairwise(reversed(ways)):
        added = [times[more][1] - times[less][1] for times in rounds]
        figures[f"{more}_ms"] = round(statistics.median(added), 2)
    return figures


def main() -> None:
    """Encode, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("chain", type=Path, nargs="?")
    parser.add_argument("key", type=Path, nargs="?")
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--repeat", type=int, default=20)
    asked = parser.parse_args()
    credentials = read(asked.chain, asked.key) if asked.chain and asked.key else None
    pixels = Image.effect_noise((asked.side, asked.side), 50).convert("RGB").tobytes()
    figures: dict[str, Any] = {}
    kinds: tuple[ImageFormat, ...] = get_args(ImageFormat)
    for kind in kinds:
        drawn = partial(encode, pixels, asked.side, asked.side, kind)
        ways: dict[str, Callable[[], bytes]] = {"bare": drawn, "xmp": partial(drawn, MADE)}
        if credentials is not None:
            ways["c2pa"] = partial(drawn, MADE, credentials)
        figures[kind] = measured(ways, asked.repeat)
    print(json.dumps({"side": asked.side, **figures, **stamp()}))


if __name__ == "__main__":
    main()
