"""The UNet of sdxl-shapes, and how it is called where FLUX.1's transformer is."""

import copy
from typing import Any

import torch
from diffusers import EDMDPMSolverMultistepScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor, nn

from models.sdxl.architectures import EDM, TRAILING
from models.shapes.flow import TOKEN, pack, unpack
from models.shapes.following import Followed
from models.shapes.sdxl.text import POOLED_WIDTH, SEQUENCE_WIDTH

CHANNELS = 16
SPREAD = 4.5
"""Standard deviation of what the text encoders tell, about. A UNet normalises neither its text nor queries and keys:
over texts this loud attention chose one word from the first steps on, and learned nothing of captions."""
SIZE_WIDTH = 16  # of the embedding of each of the six numbers that tell SDXL a picture's size
# Latents have unit deviation, so EDM's scaling of what goes in and out is that of a UNet that predicts v, and one set
# of weights serves both schedules. Source: Karras et al., "Elucidating the Design Space", 2022, table 1.
PLAYGROUND = EDM | {"sigma_data": 1.0, "prediction_type": "v_prediction"}
LIGHTNING = TRAILING | {"prediction_type": "v_prediction"}


def new_unet() -> UNet2DConditionModel:
    """A small UNet of SDXL's kind: attention in the lower of two levels, whose cells are FLUX's tokens."""
    unet = UNet2DConditionModel(
        sample_size=512 // (TOKEN // 2),
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128),
        layers_per_block=1,
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        norm_num_groups=16,
        cross_attention_dim=SEQUENCE_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=SIZE_WIDTH,
        projection_class_embeddings_input_dim=6 * SIZE_WIDTH + POOLED_WIDTH,
    )
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return unet


class AsFlow(nn.Module):
    """A UNet that predicts v, called as FLUX.1's transformer is: a flow's packed latents and noise level to velocities.

    A flow's point (1 - s) x + s e is v-prediction's, but for its length. In training half of the rows are told the
    time as EDM's schedule tells it, the others as SDXL's steps count it; else all as SDXL's.
    """

    log_noise: Tensor

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet
        self.followed = Followed(unet.config["block_out_channels"][-1], pairs=3)
        alphas = EulerDiscreteScheduler(**_arguments(LIGHTNING)).alphas_cumprod
        self.register_buffer("log_noise", (0.5 * ((1 - alphas) / alphas).log()).float(), persistent=False)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        pooled_projections: Tensor,
        encoder_hidden_states: Tensor,
        img_ids: Tensor,
        **others: Any,
    ) -> tuple[Tensor]:
        """What `models.shapes.flow.velocity` gives and takes."""
        height, width = (TOKEN * (int(last) + 1) for last in img_ids[-1, 1:])
        level = timestep.clamp(1e-3, 1 - 1e-3).view(-1, 1, 1, 1)
        length = torch.sqrt((1 - level).square() + level.square())
        of_picture, of_noise = (1 - level) / length, level / length
        seen = unpack(hidden_states, height, width) / length
        sizes = torch.tensor([height, width, 0, 0, height, width], device=seen.device).expand(len(seen), -1)
        predicted: Tensor = self.unet(
            seen,
            self._times(torch.log(level / (1 - level)).flatten()),
            encoder_hidden_states=encoder_hidden_states / SPREAD,
            added_cond_kwargs={"text_embeds": pooled_projections / SPREAD, "time_ids": sizes},
            return_dict=False,
        )[0]
        velocity = (of_noise - of_picture) * seen + (of_picture + of_noise) * predicted.float()
        return (pack(velocity),)

    def followers(self) -> list[nn.Module]:
        """Blocks whose cells are FLUX's tokens: on the way down, in the middle, and on the way up."""
        unet = self.unet
        return [unet.down_blocks[-1].attentions[-1], unet.mid_block, unet.up_blocks[0].attentions[-1]]

    @torch.no_grad()
    def stock(self) -> UNet2DConditionModel:
        """The UNet as pipelines call it, with texts as loud as they are."""
        return _heard(copy.deepcopy(self.unet), 1 / SPREAD)

    @staticmethod
    @torch.no_grad()
    def of_stock(unet: UNet2DConditionModel) -> "AsFlow":
        """What `stock` made its UNet of; the given one is changed."""
        return AsFlow(_heard(unet, SPREAD))

    def _times(self, log_noise: Tensor) -> Tensor:
        """(B,) as the schedules tell them. Source: diffusers' EulerDiscreteScheduler, EDMEulerScheduler."""
        table = self.log_noise
        above = torch.searchsorted(table, log_noise).clamp(1, len(table) - 1)
        low, high = table[above - 1], table[above]
        counted = (above - 1 + (log_noise - low) / (high - low)).clamp(0, len(table) - 1)
        if not self.training:
            return counted
        return torch.where(torch.rand_like(counted) < 0.5, counted, 0.25 * log_noise)


def _heard(unet: UNet2DConditionModel, factor: float) -> UNet2DConditionModel:
    """The UNet with the weights that read texts multiplied."""
    for name, module in unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            module.weight *= factor
    unet.add_embedding.linear_1.weight[:, :POOLED_WIDTH] *= factor  # the sizes stand behind it
    return unet


def playground_scheduler() -> EDMDPMSolverMultistepScheduler:
    """The schedule of Playground v2.5."""
    return EDMDPMSolverMultistepScheduler(**_arguments(PLAYGROUND))


def lightning_scheduler() -> EulerDiscreteScheduler:
    """The schedule of SDXL-Lightning."""
    return EulerDiscreteScheduler(**_arguments(LIGHTNING))


def _arguments(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if not name.startswith("_")}
