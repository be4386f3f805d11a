"""For which of the families a LoRA file was made, as far as its keys and shapes tell: their blocks differ."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from models.registry import Family

NAMES: dict[Family, str] = {"flux": "FLUX.1", "flux2": "FLUX.2"}
_SINGLE = r"single_transformer_blocks[._]\d+[._]"
_OWN: dict[Family, re.Pattern[str]] = {
    "flux": re.compile(
        rf"{_SINGLE}(attn[._]to_[qkv]\b|norm[._]linear|proj_mlp|proj_out)|(img|txt)_mod[._]|(?<!stream_)modulation[._]lin"
        r"|[._]ff(_context)?[._]net[._]|[._]norm1(_context)?[._]linear|time_text_embed"
    ),
    "flux2": re.compile(
        rf"{_SINGLE}attn[._]to_out|to_qkv_mlp_proj|[._]ff(_context)?[._]linear_(in|out)|_stream_modulation"
        r"|time_guidance_embed"
    ),
}
"""Layers that the other family has none of, by diffusers' names and by Black Forest Labs', dotted or kohya's."""
_GROWING = re.compile(r"(?P<base>.*(?P<layer>linear1|_mlp[._]0)\.lora_)(?P<up>B|up)(?P<end>\.weight)")
_FLUX_1_GROWTH = {"linear1": 7, "mlp.0": 4, "mlp_0": 4}
"""Outputs for one input. The names are both families'; FLUX.2, whose MLPs are gated, makes 9 and 6 of one."""
_BLOCK_WIDTHS = {3072: "FLUX.1 and of FLUX.2 [klein] 4B", 4096: "FLUX.2 [klein] 9B", 6144: "FLUX.2 [dev]"}


def foreign_key(tensors: Mapping[str, Tensor], family: Family) -> tuple[str, Family] | None:
    """The first key that only another family's LoRA has, and that family; None where nothing tells."""
    for key in tensors:
        made_for = _made_for(key, tensors)
        if made_for not in (None, family):
            return key, made_for
    return None


def width_of(layer: str, inputs: int) -> str:
    """In words, whose width a layer has that should belong to a block of the model and does not fit it."""
    known = _BLOCK_WIDTHS.get(inputs) if "transformer_blocks." in layer else None
    return f" ({inputs} is the width of {known})" if known else ""


def _made_for(key: str, tensors: Mapping[str, Tensor]) -> Family | None:
    named: Family | None = next((family for family, own in _OWN.items() if own.search(key)), None)
    return named or _by_growth(key, tensors)


def _by_growth(key: str, tensors: Mapping[str, Tensor]) -> Family | None:
    if (match := _GROWING.fullmatch(key)) is None:
        return None
    down = tensors.get(f"{match['base']}{'A' if match['up'] == 'B' else 'down'}{match['end']}")
    if down is None or down.ndim != 2 or not down.shape[1] or tensors[key].ndim != 2:
        return None
    outputs, usual = tensors[key].shape[0], _FLUX_1_GROWTH[match["layer"].removeprefix("_")] * down.shape[1]
    return "flux" if outputs == usual else "flux2" if outputs > usual else None
