"""Every Triton kernel as FLUX.1-dev at full size launches it, compiled ahead of time for GPUs that are not here.

    python -m benchmarks.kernels [--targets 80 90]

Which kernels, with which types, sizes and alignments, is taken from steps on the `meta` device. A row a kernel and GPU:
registers of a thread, bytes it spills, shared memory of a program, accesses to the device's memory and how many of them
are narrower than 32 bits. The last line is the table as JSON. Needs triton without its interpreter, and no GPU.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.dry_run.__main__ import CASES, components, counted
from benchmarks.dry_run.counter import Call, counting
from models.group_norm_kernel import group_norm_silu
from server.bench.report import table

TARGETS = (80, 89, 90, 100, 120)
"""Compute capabilities: A100, Ada, Hopper, B200, Blackwell of workstations."""

FLOAT8_CAPABILITY = 89
_TYPES = {
    torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float8_e4m3fn: "fp8e4nv",
    torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip
_ALIGNED = [["tt.divisibility", 16]]
_ACCESS = re.compile(r"\b(?:ld|st)\.global\S*?(?:\.v(\d))?\.[bfsu](\d+)\s")


@dataclass(frozen=True)
class Compiled:
    """One kernel for one GPU.

    Args: spilled, shared: bytes. accesses: to the device's memory, in the code. narrow: those of fewer than 32 bits.
    """

    kernel: str
    target: int
    registers: int
    spilled: int
    shared: int
    accesses: int
    narrow: int


@dataclass(frozen=True)
class Specialisation:
    """A kernel in one of the forms that Triton would make of it. Args: names: of the arguments."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[int, Any], ...]
    aligned: tuple[int, ...]
    warps: int

    @property
    def name(self) -> str:
        """The kernel's, with the constants that tell its forms apart."""
        names = [name for name, _ in self.signature]
        told = [f"{names[at]}={value}" for at, value in self.constants if names[at].isupper()]
        return f"{self.kernel.__name__.strip('_').removesuffix('_kernel')} {' '.join(told)}"

    @property
    def is_float8(self) -> bool:
        return any("fp8" in kind for _, kind in self.signature)


def specialisation(call: Call) -> Specialisation:
    """As Triton tells launches apart: by types, constants, integers that are 1, and multiples of 16."""
    given = dict(zip(call.kernel.arg_names, call.args, strict=False))
    given |= {name: value for name, value in call.options.items() if name in call.kernel.arg_names}
    signature, constants, aligned = [], [], []
    for at, name in enumerate(call.kernel.arg_names):
        value = given[name]
        kind = "constexpr" if name.isupper() or value is None or value is 1 else _kind(value)  # noqa: F632
        signature.append((name, kind))
        if kind == "constexpr":
            constants.append((at, value))
        elif _is_aligned(value):
            aligned.append(at)
    warps = call.options.get("num_warps", 4)
    return Specialisation(call.kernel, tuple(signature), tuple(constants), tuple(aligned), warps)


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"*{_TYPES[value.dtype]}"
    return "fp32" if isinstance(value, float) else "i32"


def _is_aligned(value: Any) -> bool:
    """Tensors begin at multiples of 256 bytes; parts of them further on."""
    if isinstance(value, Tensor):
        return value.storage_offset() * value.itemsize % 16 == 0
    return isinstance(value, int) and value % 16 == 0


def launched() -> list[Specialisation]:
    """Every form that steps in bfloat16 and float8 and a decoder launch, once."""
    calls: list[Call] = []
    for case in CASES:
        if case.sides == (1024,):
            calls += counted(case).next.calls
    return list(dict.fromkeys(specialisation(call) for call in (*calls, *_norms())))


@torch.inference_mode()
def _norms() -> list[Call]:
    """The group norms of a VAE, one of every width."""
    with counting() as tally:
        for channels in components(in_float8=False).vae.config.block_out_channels:
            x = torch.empty((1, channels, 128, 128), dtype=torch.bfloat16, device="meta")
            weight = torch.empty(channels, dtype=torch.bfloat16, device="meta")
            group_norm_silu(x.to(memory_format=torch.channels_last), weight, weight, 32, 1e-6)
    return tally.calls


def compiled(form: Specialisation, target: int) -> Compiled:
    """Raises: whatever Triton or ptxas cannot do."""
    attrs = {(at,): _ALIGNED for at in form.aligned}
    source = ASTSource(form.kernel, dict(form.signature), {(at,): value for at, value in form.constants}, attrs)
    result = triton.compile(source, target=GPUTarget("cuda", target, 32), options={"num_warps": form.warps})
    widths = [int(lanes or 1) * int(bits) for lanes, bits in _ACCESS.findall(result.asm["ptx"])]
    used = _resources(result.asm["cubin"])
    narrow = sum(bits < 32 for bits in widths)
    return Compiled(form.name, target, used["REG"], used["STACK"], result.metadata.shared, len(widths), narrow)


def _resources(cubin: bytes) -> dict[str, int]:
    """What the assembler says that a kernel takes."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    return {name: int(count) for name, count in re.findall(r"(\w+):(\d+)", said.stdout)}


def rows(targets: Sequence[int]) -> Iterator[Compiled]:
    for form in launched():
        for target in targets:
            if not form.is_float8 or target >= FLOAT8_CAPABILITY:
                yield compiled(form, target)


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
    return table([{name: str(value) for name, value in row.items()} for row in found])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=int, nargs="+", choices=TARGETS, default=TARGETS)
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    found = [asdict(row) for row in rows(arguments.targets)]
    print(markdown(found))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
