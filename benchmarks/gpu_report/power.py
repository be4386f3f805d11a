"""Power and clocks while a part runs, sampled by nvidia-smi: it is there wherever the driver is, without a package."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean, median
from threading import Thread
from typing import IO, Any

_QUERY = "power.draw.instant,clocks.sm,temperature.gpu"
_SETTLING_S = 0.3
"""Left out at the beginning of a window: the card has only begun to work."""

Sample = tuple[float, float, float, float]
"""(moment, watts, MHz, degrees Celsius)"""


class Power:
    """Samples the first GPU every 100 ms. Attributes: windows: mean power and energy a picture, by name."""

    def __init__(self, is_there: bool) -> None:
        self.windows: dict[str, dict[str, float]] = {}
        self._samples: list[Sample] = []
        self._process: subprocess.Popen[str] | None = None
        if is_there:
            command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits", "-lms", "100", "-i", "0"]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert self._process.stdout is not None
            Thread(target=self._read, args=(self._process.stdout,), name="power", daemon=True).start()

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            if sample := parsed(line):
                self._samples.append((time.monotonic(), *sample))

    @contextmanager
    def window(self, name: str, pictures: int) -> Iterator[None]:
        """What is drawn inside is accounted for under this name."""
        began = time.monotonic()
        yield
        ended = time.monotonic()
        inside = [sample for sample in self._samples if began + _SETTLING_S <= sample[0] <= ended]
        if inside:
            self.windows[name] = account(inside, ended - began, pictures)

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()


def parsed(line: str) -> tuple[float, float, float] | None:
    """Watts, MHz and degrees of one line; None where the card does not tell one of them."""
    try:
        watts, clock, heat = (float(word) for word in line.split(","))
    except ValueError:
        return None
    return watts, clock, heat


def account(samples: list[Sample], seconds: float, pictures: int) -> dict[str, Any]:
    """Mean power times the time, spread over the pictures."""
    watts = fmean(sample[1] for sample in samples)
    return {
        "watts": round(watts, 1),
        "max_watts": max(sample[1] for sample in samples),
        "joules_a_picture": round(watts * seconds / pictures, 1),
        "seconds": round(seconds, 2),
        "samples": len(samples),
        "sm_mhz_median": median(sample[2] for sample in samples),
        "sm_mhz_min": min(sample[2] for sample in samples),
        "max_celsius": max(sample[3] for sample in samples),
    }
