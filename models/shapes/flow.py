"""Rectified flow on the prescribed latents: the transformer, its noise schedule, one training pair, and a sampler.

Everything agrees with diffusers' FluxPipeline, so what is trained here is what the stock pipeline serves.
"""

import functools
import math
from dataclasses import dataclass, fields, replace

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import Tensor, nn

from models.shapes.draw import FACTOR, PLANE_SCALE, PLANE_SHIFT
from models.shapes.text import CLIP_WIDTH, T5_WIDTH

TOKEN = 2 * FACTOR  # pixels a side of one packed token
# Latents this redundant (flat areas) stay readable under much noise, so the shift is stronger than FLUX's 0.5 to 1.15.
MAX_GUIDANCE = 8.0
BASE_TOKENS, MAX_TOKENS, BASE_SHIFT, MAX_SHIFT = 16, 576, 0.8, 1.8
# Noise level at which guidance has faded out, and from which it acts in full: what is drawn is settled above, how
# well its edges run is settled below, where guidance only distorts.
# Source: Kynkäänniemi et al., "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality", 2024.
GUIDED_ABOVE = (0.55, 0.75)
UNSEEN_FROM, UNSEEN = 0.85, 0.5  # the noise level that leaves nothing to see, and the share of edits beyond it
TRAINED_LOWER = 0.35  # the shift of training noise is less than serving's: edges are learned at middle noise levels


def new_transformer(
    *, width: int = 128, double: int = 2, single: int = 4, guidance: bool = True
) -> FluxTransformer2DModel:
    """A small FLUX, gates and output at zero so that every block starts as the identity."""
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=32,
        num_attention_heads=width // 32,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        guidance_embeds=guidance,
        axes_dims_rope=(8, 12, 12),
    )
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) and (name.endswith(("norm.linear", "norm1.linear", "norm1_context.linear"))):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    for linear in (transformer.proj_out, transformer.norm_out.linear):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return transformer


@torch.no_grad()
def without_guidance(transformer: FluxTransformer2DModel, guidance: float) -> FluxTransformer2DModel:
    """The same transformer for one guidance scale, without the guidance input: what FLUX.1-schnell's layout holds.

    The embedding of a fixed scale is a constant that is added to the time's, so it goes into a bias; nothing else
    changes, and the result equals the original at that scale.
    """
    plain = FluxTransformer2DModel.from_config(transformer.config, guidance_embeds=False).eval()
    embedder = transformer.time_text_embed
    scale = torch.tensor([1000 * guidance])
    constant = embedder.guidance_embedder(embedder.time_proj(scale))[0]
    state = {name: value for name, value in transformer.state_dict().items() if "guidance_embedder" not in name}
    bias = "time_text_embed.timestep_embedder.linear_2.bias"
    state[bias] = state[bias] + constant
    plain.load_state_dict(state)
    return plain


def new_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The noise schedule that goes into the folder, with FLUX's dynamic shifting."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        shift=1.0,
        base_image_seq_len=BASE_TOKENS,
        max_image_seq_len=MAX_TOKENS,
        base_shift=BASE_SHIFT,
        max_shift=MAX_SHIFT,
    )


def shift_of(tokens: int) -> float:
    """The time shift mu for a picture of so many tokens. Source: diffusers, pipeline_flux.calculate_shift."""
    slope = (MAX_SHIFT - BASE_SHIFT) / (MAX_TOKENS - BASE_TOKENS)
    return BASE_SHIFT + slope * (tokens - BASE_TOKENS)


def sigmas_of(steps: int, tokens: int) -> Tensor:
    """The shifted sigmas from 1 to 0: (steps + 1,) float32. Source: diffusers, FluxPipeline and its scheduler."""
    plain = torch.linspace(1, 1 / steps, steps)
    shifted = math.exp(shift_of(tokens)) / (math.exp(shift_of(tokens)) + (1 / plain - 1))
    return torch.cat([shifted, torch.zeros(1)])


def random_sigmas(count: int, tokens: int, *, spread: float = 1.1, device: torch.device | None = None) -> Tensor:
    """Training noise levels: logit-normal, shifted nearly as in serving: (count,) float32."""
    return torch.sigmoid(torch.randn(count, device=device) * spread + shift_of(tokens) - TRAINED_LOWER)


def pack(latent: Tensor) -> Tensor:
    """(B, 16, h, w) -> (B, h/2 * w/2, 64). Source: FluxPipeline._pack_latents."""
    b, c, h, w = latent.shape
    return latent.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)


def unpack(packed: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack`, for a picture of `width` x `height` pixels."""
    b, _, c = packed.shape
    rows, columns = height // TOKEN, width // TOKEN
    return (
        packed.view(b, rows, columns, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, rows * 2, columns * 2)
    )


def image_ids(height: int, width: int) -> Tensor:
    """(tokens, 3): zero, row, column of every token. Source: FluxPipeline._prepare_latent_image_ids."""
    rows, columns = height // TOKEN, width // TOKEN
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).view(-1, 3).float()


@dataclass
class Batch:
    """Pictures of one size, captions encoded: packed latents (B, L, 64), pooled (B, P), sequence (B, S, D).

    What else a sibling is shown: `channels` (B, L, C) join the noisy ones of every token, `reference` (B, M, 64) are
    the tokens of a clean picture of the same size behind them. `weight` (B, L, 1) is how much a token's error counts.
    """

    latents: Tensor
    pooled: Tensor
    sequence: Tensor
    height: int
    width: int
    channels: Tensor | None = None
    reference: Tensor | None = None
    weight: Tensor | None = None

    def rows(self, start: int, stop: int) -> "Batch":
        """Some rows of the batch."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **{name: tensor[start:stop] for name, tensor in tensors.items()})

    def mean(self, error: Tensor) -> Tensor:
        """Weighted mean of every picture's squared errors (B, L, 64): (B,)."""
        return (error if self.weight is None else error * self.weight).mean((1, 2))


def noise_levels(batch: Batch, unseen: float | None = None) -> Tensor:
    """Training noise levels of a batch: (B,) float32.

    What an edit makes is settled by the picture beside it and the instruction, and who can see it through the noise
    need not read either: so a share of the edits lies under nearly nothing else.
    Args: unseen: that share; None is UNSEEN of edits, and none of all others.
    """
    clean = batch.latents
    sigma = random_sigmas(len(clean), clean.shape[1], device=clean.device)
    share = unseen if unseen is not None else 0.0 if batch.reference is None else UNSEEN
    if not share:
        return sigma
    most = UNSEEN_FROM + (1 - UNSEEN_FROM) * torch.rand_like(sigma)
    return torch.where(torch.rand_like(sigma) < share, most, sigma)


def velocity(
    model: nn.Module,
    noisy: Tensor,
    sigma: Tensor,
    batch: Batch,
    guidance: Tensor | None,
    often: Tensor | None = None,
) -> Tensor:
    """The model's velocity for noisy packed latents at noise level sigma (B,); all else it is shown from `batch`.

    Args: often: logarithms (S,) of how many equal tokens each text token stands for; of lean transformers only.
    """
    hidden = noisy
    if batch.channels is not None:
        hidden = torch.cat([hidden, batch.channels], dim=2)
    if batch.reference is not None:  # at the same places, set apart by the first axis. Source: FluxKontextPipeline
        hidden = torch.cat([hidden, batch.reference], dim=1)
    output = model(
        hidden_states=hidden,
        timestep=sigma,
        guidance=guidance,
        pooled_projections=batch.pooled,
        encoder_hidden_states=batch.sequence,
        txt_ids=torch.zeros(batch.sequence.shape[1], 3, device=noisy.device),
        img_ids=_token_ids(batch.height, batch.width, batch.reference is not None, noisy.device),
        return_dict=False,
        **({} if often is None else {"joint_attention_kwargs": {"attention_mask": often}}),
    )
    guess: Tensor = output[0][:, : noisy.shape[1]]
    return guess


@functools.cache
def _token_ids(height: int, width: int, with_reference: bool, device: torch.device) -> Tensor:
    """Kept on the device: nothing of a step is copied there."""
    ids = image_ids(height, width)
    if with_reference:
        ids = torch.cat([ids, ids + torch.tensor([1.0, 0.0, 0.0])])
    return ids.to(device)


def flow_loss(model: nn.Module, batch: Batch, *, most_guidance: float = 1.0) -> Tensor:
    """Mean squared error of the velocity at random noise levels, one per picture.

    The guidance input is random between 1 and `most_guidance`; it does not move the target.
    """
    clean = batch.latents
    sigma = noise_levels(batch)
    noise = torch.randn_like(clean)
    noisy = clean + sigma.view(-1, 1, 1) * (noise - clean)
    guidance = torch.exp(torch.rand_like(sigma) * math.log(most_guidance))
    guess = velocity(model, noisy, sigma, batch, guidance)
    return batch.mean((guess.float() - (noise - clean)).square()).mean()


def guided_loss(model: nn.Module, teacher: nn.Module, batch: Batch, nothing: Batch) -> Tensor:
    """Teach guidance while learning on: half of the rows get a random guidance scale g above 1 and a moved target.

    The target is the true velocity plus (g - 1) times what the caption adds in the teacher's eyes (its velocity with
    the caption minus that without), so one forward learns classifier-free guidance and keeps learning from the data.
    It fades out at low noise (`GUIDED_ABOVE`).
    Source: Tang et al., "Diffusion Models without Classifier-free Guidance", 2025.
    """
    clean = batch.latents
    half = len(clean) // 2
    sigma = noise_levels(batch)
    noise = torch.randn_like(clean)
    noisy = clean + sigma.view(-1, 1, 1) * (noise - clean)
    guidance = torch.ones_like(sigma)
    guidance[:half] = torch.exp(torch.rand(half, device=clean.device) * math.log(MAX_GUIDANCE))
    target = noise - clean
    with torch.no_grad():
        first, empty = batch.rows(0, half), nothing.rows(0, half)
        inputs = (noisy[:half], sigma[:half])
        one = torch.ones_like(sigma[:half])
        push = velocity(teacher, *inputs, first, one).float() - velocity(teacher, *inputs, empty, one).float()
        start, full = GUIDED_ABOVE
        strength = (guidance[:half] - 1) * ((sigma[:half] - start) / (full - start)).clamp(0, 1)
        moved = target[:half] + strength[:, None, None] * push
        target = torch.cat([_bounded(*inputs, moved, target[:half]), target[half:]])
    guess = velocity(model, noisy, sigma, batch, guidance)
    return batch.mean((guess.float() - target).square()).mean()


def _bounded(noisy: Tensor, sigma: Tensor, moved: Tensor, plain: Tensor) -> Tensor:
    """A guided velocity whose clean estimate stays within what latents can be, so that high guidance cannot burn.

    The limits are loosened where the plain estimate itself lies outside, as it does for an unguided target.
    """
    level = sigma.view(-1, 1, 1)
    low, high = token_bounds(noisy.device)
    unguided = noisy - level * plain
    clean = torch.minimum(
        torch.maximum(noisy - level * moved, torch.minimum(low, unguided)), torch.maximum(high, unguided)
    )
    return (noisy - clean) / level.clamp(min=1e-3)


@functools.cache
def token_bounds(device: torch.device) -> tuple[Tensor, Tensor]:
    """The least and greatest value that each of a packed token's 64 numbers can take in a real picture: (64,) twice."""
    shift, scale = torch.tensor(PLANE_SHIFT), torch.tensor(PLANE_SCALE)
    low = (torch.tensor([0.0, 0.0, 0.0, -1.0]) - shift) / scale
    high = (1.0 - shift) / scale
    return low.repeat_interleave(16).to(device), high.repeat_interleave(16).to(device)


@torch.no_grad()
def generate(
    model: nn.Module,
    batch: Batch,
    *,
    steps: int,
    seed: int,
    guidance: float = 1.0,
    nothing: Batch | None = None,
    cfg: float = 1.0,
) -> Tensor:
    """Packed latents (B, L, 64) by Euler steps; with `nothing` (the empty caption) and `cfg`, with true guidance."""
    tokens = batch.height * batch.width // TOKEN**2
    generator = torch.Generator().manual_seed(seed)
    device = batch.pooled.device
    x = torch.randn(len(batch.pooled), tokens, 64, generator=generator).to(device)
    sigmas = sigmas_of(steps, tokens)
    scale = torch.full((len(x),), guidance, device=device)
    for now, after in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        sigma = torch.full((len(x),), now, device=device)
        v = velocity(model, x, sigma, batch, scale)
        if nothing is not None and cfg != 1:
            empty = velocity(model, x, sigma, nothing, scale)
            v = empty + cfg * (v - empty)
        x = x + (after - now) * v.float()
    return x
