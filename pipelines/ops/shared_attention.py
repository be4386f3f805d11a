"""Attention over a pack that is shared out, and its velocities brought together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipelines.ops.attention import Attend
from pipelines.ops.exchanges import Exchanges
from pipelines.ops.shares import orders, pairs


def attention_by_heads(attend: Attend, exchanges: Exchanges) -> Attend:
    """`attend` for shares of tokens: whole pictures in their own order, with heads / count of the heads on each rank.

    So every head is attended to as on one device. Heads must be a multiple of the number of ranks.
    """
    shares = exchanges.shares
    lengths = tuple(t + n for t, n in zip(shares.text_lengths, shares.image_lengths, strict=True))
    count, own = shares.count, shares.joint_totals[exchanges.rank]
    parts = tuple(pairs(shares.text_lengths, shares.image_lengths))

    def attended(query: Tensor, key: Tensor, value: Tensor, own_lengths: Sequence[int]) -> Tensor:
        places, ranked = orders(parts, count, query.device)
        by_rank = torch.stack((query, key, value), dim=1).unflatten(2, (count, -1)).permute(2, 0, 1, 3, 4)
        gathered = exchanges.make(by_rank.flatten(0, 1).contiguous())
        whole_query, whole_key, whole_value = gathered[places].unbind(1)
        some_heads = attend(whole_query, whole_key, whole_value, lengths)
        returned = exchanges.make(some_heads[ranked])
        result: Tensor = returned.unflatten(0, (count, own)).transpose(0, 1).flatten(1)
        return result

    return attended


def gathered_image(image: Tensor, exchanges: Exchanges) -> Tensor:
    """Each rank's image rows -> all (sum N, ...) in order at the first rank, nothing at the others."""
    shares, rows = exchanges.shares, exchanges.make(image.contiguous())
    return rows if exchanges.rank else rows[orders(shares.image_lengths, shares.count, rows.device)[0]]
