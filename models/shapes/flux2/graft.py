"""FLUX.1's weights in FLUX.2's layout: where flux2-shapes starts, so that it need not learn to draw from nothing.

FLUX.2 has no pooled vector, no biases, SwiGLU in the place of GELU, and shift, scale and gate that all blocks share.
What is lost by that is learned again; all else fits:

- A few directions of a block's input hold next to nothing. The shared shift fills them with a constant and with curves
  over the noise level, and a matrix that reads them adds any bias, and any shift of its own block.
- A block's own scale goes into the columns of what reads its input, its own gate into the rows of what it gives.
- GELU(x) is nearly x * sigmoid(1.702 x): SwiGLU whose second half reads the constant.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn.functional import silu

from models.shapes.flow import Batch, velocity

LEVELS = 256  # noise levels at which the curves are compared
CURVES = 4  # directions that a shift fills: the first with a constant
LOUD = 4.0  # the constant, in deviations of the input
GELU = 1.702  # Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016


class Curves(NamedTuple):
    """Shift, scale and gate of one block by noise level, as the mean over captions: (LEVELS, width) each."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


@dataclass(frozen=True)
class Shared:
    """What blocks share, and what each must make up for by its weights.

    `ratios` and `gates` (blocks, width) are each block's own scale and gate over the shared ones, `pushes` (blocks,
    CURVES, width) its shift in terms of what fills `directions` (width, CURVES).
    """

    curves: Curves
    directions: Tensor
    ratios: Tensor
    gates: Tensor
    pushes: Tensor

    def reading(self, block: int, weight: Tensor, bias: Tensor | None, *, constant: float = 0.0) -> Tensor:
        """A matrix (out, width) that reads the shared input as `weight` and `bias` read the block's own.

        Args: constant: added to every output.
        """
        kept = weight * self.ratios[block]
        kept = kept - kept @ self.directions @ self.directions.T
        added = weight @ self.pushes[block].T
        added[:, 0] += constant + (0.0 if bias is None else bias)
        return kept + added @ self.directions.T / LOUD

    def given(self, block: int, linear: nn.Linear) -> Tensor:
        """The weight of a block's output, for the shared gate; its bias, which is small, is lost."""
        return linear.weight * self.gates[block][:, None]


def shared_by(blocks: Sequence[Curves], inputs: Sequence[Tensor]) -> Shared:
    """The best shared curves for some blocks. Args: inputs: second moments (width, width) of their normed inputs."""
    scale, ratios = _common([1 + block.scale for block in blocks])
    gate, gates = _common([block.gate for block in blocks])
    typical = scale.mean(0)
    moments = torch.stack(list(inputs)).mean(0) * typical[:, None] * typical
    directions = torch.linalg.eigh(moments).eigenvectors[:, :CURVES]  # in ascending order
    shifts = torch.cat([block.shift for block in blocks], dim=1)
    moved = shifts - shifts.mean(0)
    curves = torch.linalg.eigh(moved @ moved.T).eigenvectors[:, 1 - CURVES :]
    filled = torch.cat([torch.ones(len(shifts), 1), curves * len(shifts) ** 0.5], dim=1)
    pushes = torch.stack([torch.linalg.lstsq(filled, block.shift).solution for block in blocks])
    return Shared(Curves(LOUD * filled @ directions.T, scale - 1, gate), directions, ratios, gates, pushes)


def _common(curves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The curve (LEVELS, width), and factors (blocks, width), whose products are nearest to those of all blocks."""
    stacked = torch.stack(list(curves)).permute(2, 0, 1)  # width, blocks, levels
    factor = torch.linalg.eigh(stacked @ stacked.mT).eigenvectors[:, :, -1]  # of the greatest singular value
    size = factor.abs().mean(1, keepdim=True)
    return size.T * (factor[:, None] @ stacked)[:, 0].T, (factor / size).T


def grafted(teacher: FluxTransformer2DModel, student: Flux2Transformer2DModel, batch: Batch, guidance: float) -> None:
    """Give `student` the weights of `teacher` at one guidance scale, as far as they fit.

    Args: batch: pictures with captions as the teacher reads them, for means over captions and inputs.
    """
    with torch.no_grad():
        _Graft(teacher, student, batch, guidance).run()


class _Graft:
    def __init__(
        self, teacher: FluxTransformer2DModel, student: Flux2Transformer2DModel, batch: Batch, guidance: float
    ) -> None:
        self.teacher, self.student = teacher, student
        self.levels = torch.linspace(1e-3, 1, LEVELS)
        self.told = _told(teacher, 1000 * self.levels, batch.pooled, 1000 * guidance)
        self.moments = _second_moments(teacher, batch, guidance)

    def run(self) -> None:
        teacher, student = self.teacher, self.student
        student.x_embedder.weight.copy_(teacher.x_embedder.weight)
        own, given = student.time_guidance_embed.timestep_embedder, teacher.time_text_embed.timestep_embedder
        own.linear_1.weight.copy_(given.linear_1.weight)
        own.linear_2.weight.copy_(given.linear_2.weight)
        self._pictures()
        self._words()
        self._single()
        scale, shift = self._parts(teacher.norm_out.linear, 2)
        student.proj_out.weight.copy_(teacher.proj_out.weight)
        bias = torch.linalg.lstsq(teacher.proj_out.weight, teacher.proj_out.bias[:, None]).solution[:, 0]
        self._tell(student.norm_out.linear, [scale, shift + bias])

    def _pictures(self) -> None:
        pairs = list(zip(self.teacher.transformer_blocks, self.student.transformer_blocks, strict=True))
        first, second = self._shared([block.norm1 for block, _ in pairs], [block.norm2 for block, _ in pairs])
        for i, (block, own) in enumerate(pairs):
            for name in ("to_q", "to_k"):
                _read(first, i, getattr(block.attn, name), getattr(own.attn, name), turn=True)
            _read(first, i, block.attn.to_v, own.attn.to_v)
            own.attn.norm_q.weight.copy_(_turned(block.attn.norm_q.weight))
            own.attn.norm_k.weight.copy_(_turned(block.attn.norm_k.weight))
            own.attn.to_out[0].weight.copy_(first.given(i, block.attn.to_out[0]))
            _feed_forward(second, i, block.ff, own.ff)
        self._tell(self.student.double_stream_modulation_img.linear, [*first.curves, *second.curves])

    def _words(self) -> None:
        pairs = list(zip(self.teacher.transformer_blocks, self.student.transformer_blocks, strict=True))
        norms = [block.norm1_context for block, _ in pairs], [block.norm2_context for block, _ in pairs]
        first, second = self._shared(*norms)
        for i, (block, own) in enumerate(pairs):
            for name in ("add_q_proj", "add_k_proj"):
                _read(first, i, getattr(block.attn, name), getattr(own.attn, name), turn=True)
            _read(first, i, block.attn.add_v_proj, own.attn.add_v_proj)
            own.attn.norm_added_q.weight.copy_(_turned(block.attn.norm_added_q.weight))
            own.attn.norm_added_k.weight.copy_(_turned(block.attn.norm_added_k.weight))
            own.attn.to_add_out.weight.copy_(first.given(i, block.attn.to_add_out))
            _feed_forward(second, i, block.ff_context, own.ff_context)
        self._tell(self.student.double_stream_modulation_txt.linear, [*first.curves, *second.curves])

    def _single(self) -> None:
        pairs = list(zip(self.teacher.single_transformer_blocks, self.student.single_transformer_blocks, strict=True))
        (shared,) = self._shared([block.norm for block, _ in pairs])
        for i, (block, own) in enumerate(pairs):
            query, key, value = (
                shared.reading(i, each.weight, each.bias)
                for each in (block.attn.to_q, block.attn.to_k, block.attn.to_v)
            )
            hidden = _as_swiglu(shared, i, block.proj_mlp)
            own.attn.to_qkv_mlp_proj.weight.copy_(torch.cat([_turned(query), _turned(key), value, hidden]))
            own.attn.norm_q.weight.copy_(_turned(block.attn.norm_q.weight))
            own.attn.norm_k.weight.copy_(_turned(block.attn.norm_k.weight))
            own.attn.to_out.weight.copy_(shared.given(i, block.proj_out))
        self._tell(self.student.single_stream_modulation.linear, shared.curves)

    def _shared(self, modulated: Sequence[Any], *later: Sequence[Any]) -> list[Shared]:
        """What blocks share, for every norm that one modulation of theirs steers.

        Args: modulated: the blocks' first norms, which hold the modulation. later: their plain norms.
        """
        norms = [[each.norm for each in modulated], *later]
        parts = [self._parts(each.linear, 3 * len(norms)) for each in modulated]
        return [
            shared_by([Curves(*each[3 * i : 3 * i + 3]) for each in parts], [self.moments[norm] for norm in row])
            for i, row in enumerate(norms)
        ]

    def _parts(self, linear: nn.Linear, count: int) -> list[Tensor]:
        """What a modulation gives by noise level, as the mean over captions."""
        return list(linear(self.told).chunk(count, dim=1))

    def _tell(self, linear: nn.Linear, curves: Iterable[Tensor]) -> None:
        """Make a modulation of the student give these curves (LEVELS, width), one behind the other."""
        embedded = silu(self.student.time_guidance_embed(1000 * self.levels, None))
        ridge = 1e-3 * torch.eye(embedded.shape[1])
        wanted = torch.cat([torch.cat(list(curves), dim=1), torch.zeros(len(ridge), linear.out_features)])
        linear.weight.copy_(torch.linalg.lstsq(torch.cat([embedded, ridge]), wanted).solution.T)


def _read(shared: Shared, i: int, given: nn.Linear, own: nn.Linear, *, turn: bool = False) -> None:
    weight = shared.reading(i, given.weight, given.bias)
    own.weight.copy_(_turned(weight) if turn else weight)


def _feed_forward(shared: Shared, i: int, given: Any, own: Any) -> None:
    own.linear_in.weight.copy_(_as_swiglu(shared, i, given.net[0].proj))
    own.linear_out.weight.copy_(shared.given(i, given.net[2]))


def _as_swiglu(shared: Shared, i: int, linear: nn.Linear) -> Tensor:
    """GELU behind a linear layer, as what SwiGLU reads: (2 * hidden, width)."""
    gate = GELU * shared.reading(i, linear.weight, linear.bias)
    return torch.cat([gate, shared.reading(i, torch.zeros_like(linear.weight), None, constant=1 / GELU)])


def _turned(heads: Tensor) -> Tensor:
    """Rows of queries or keys, so that FLUX.2's axes (4, 12, 12, 4) turn what FLUX.1's (8, 12, 12) do.

    FLUX.1's first axis is always at 0: half of its rows stand where FLUX.2 tells a picture from its references, and
    half where it counts words.
    """
    order = torch.tensor([0, 1, 2, 3, *range(8, 32), 4, 5, 6, 7])
    return heads.view(-1, 32, *heads.shape[1:])[:, order].flatten(0, 1)


def _told(teacher: FluxTransformer2DModel, times: Tensor, captions: Tensor, guidance: float) -> Tensor:
    """What modulations read, by time, as the mean over captions, since they are linear: (times, width)."""
    rows = (len(times), len(captions))
    time, caption = times[:, None].expand(rows).flatten(), captions.repeat(len(times), 1)
    embedded: Tensor = silu(teacher.time_text_embed(time, torch.full_like(time, guidance), caption))
    return embedded.view(*rows, -1).mean(1)


def _second_moments(teacher: nn.Module, batch: Batch, guidance: float) -> dict[nn.Module, Tensor]:
    """Of what every layer norm gives on noisy pictures: (width, width) each."""
    found: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, _: Any, output: Tensor) -> None:
        rows = output.flatten(0, -2)
        found[module] = rows.T @ rows / len(rows)

    hooks = [m.register_forward_hook(keep) for m in teacher.modules() if isinstance(m, nn.LayerNorm)]
    rows = len(batch.latents)
    sigma = torch.linspace(0.02, 1, rows)
    noisy = batch.latents + sigma.view(-1, 1, 1) * (torch.randn_like(batch.latents) - batch.latents)
    velocity(teacher, noisy, sigma, batch, torch.full_like(sigma, guidance))
    for hook in hooks:
        hook.remove()
    return found
