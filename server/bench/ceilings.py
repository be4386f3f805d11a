"""What a card's matrix units do at best, in dense bfloat16 TFLOP/s: what achieved figures are held against."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Args: source: measured, or taken from the maker's data sheet, which no program reaches."""

    tflops: float
    source: str


_MEASURED = "measured with large matrix products"
_SHEET = "data sheet"

# The first name that is part of the device's name counts.
_CEILINGS = (
    ("H200", Ceiling(790, _MEASURED)),
    ("H100 PCIe", Ceiling(756, _SHEET)),
    ("H100", Ceiling(989, _SHEET)),
    ("B200", Ceiling(2250, _SHEET)),
    ("A100", Ceiling(312, _SHEET)),
    ("L40S", Ceiling(362, _SHEET)),
    ("RTX 4090", Ceiling(165, _SHEET)),
)


def ceiling_of(device_name: str | None, given_tflops: float | None = None) -> Ceiling | None:
    """The ceiling of a device by its name, unless the user gave one; None for what is not in the table."""
    if given_tflops is not None:
        return Ceiling(given_tflops, "--peak-tflops")
    return next((ceiling for name, ceiling in _CEILINGS if name in (device_name or "")), None)
