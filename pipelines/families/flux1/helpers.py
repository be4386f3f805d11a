"""The other models that a request's conditions call for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from diffusers import FluxControlNetModel, FluxTransformer2DModel
from torch import Tensor

from models.auxiliaries import Auxiliary, DepthEstimator, Find, ReduxPrior
from models.auxiliaries import ControlNet as Net
from pipelines.engine.request import RequestError
from pipelines.families.flux1.encode import PromptEmbedding
from pipelines.families.flux1.inputs import Depth
from pipelines.pictures.depth import depth_of
from pipelines.pictures.redux import picture_tokens
from pipelines.protocol.conditions import ControlNet, Redux
from pipelines.protocol.params import DEPTH_ESTIMATOR, GenerationParams

A = TypeVar("A", bound=Auxiliary)


@dataclass(frozen=True, slots=True)
class WantedNet:
    """A ControlNet and what a request wants of it."""

    net: FluxControlNetModel
    condition: ControlNet


@dataclass(frozen=True, slots=True)
class Helpers:
    """Loaded before admission; a request keeps what it uses, whatever the pool lets go of."""

    prior: ReduxPrior | None = None
    depth: Depth | None = None
    nets: tuple[WantedNet, ...] = ()

    @classmethod
    def of(cls, params: GenerationParams, find: Find, transformer: FluxTransformer2DModel) -> Helpers:
        """Raises: RequestError naming the condition whose model is not here, or not made for this transformer."""
        redux, nets = params.find(Redux), [each for each in params.conditions if isinstance(each, ControlNet)]
        prior = None if redux is None else _found(find, redux.encoder, ReduxPrior, (redux.kind, "encoder"))
        wanted = tuple(WantedNet(_found(find, net.name, Net, (net.kind, "name")).net, net) for net in nets)
        if prior is not None:
            _check_fit(prior, prior.image_embedder.config.txt_in_features, transformer.config.joint_attention_dim)
        for each in wanted:
            _check_fit(each, _shape(each.net), _shape(transformer))
        return cls(prior, _depth(find) if DEPTH_ESTIMATOR in params.models else None, wanted)


def _shape(network: FluxTransformer2DModel | FluxControlNetModel) -> tuple[int, ...]:
    """What two networks over the same tokens have in common."""
    names = ("num_attention_heads", "attention_head_dim", "in_channels", "joint_attention_dim", "pooled_projection_dim")
    return tuple(int(network.config[name]) for name in names)


def _check_fit(helper: ReduxPrior | WantedNet, given: object, taken: object) -> None:
    if given != taken:
        is_prior = isinstance(helper, ReduxPrior)
        name = helper.spec.name if isinstance(helper, ReduxPrior) else helper.condition.name
        loc = ("redux", "encoder") if is_prior else ("controlnet", "name")
        raise RequestError(f"the model {name} was made for another one than this request's", loc)


def _found(find: Find, name: str, kind: type[A], loc: tuple[str | int, ...]) -> A:
    try:
        auxiliary = find(name)
    except KeyError as exc:
        raise RequestError(f"no model {name} here", loc) from exc
    if not isinstance(auxiliary, kind):
        raise RequestError(f"the model {name} is of another kind", loc)
    return auxiliary


def _depth(find: Find) -> Depth | None:
    """None if nothing here tells depth: a request may still bring it."""
    try:
        estimator = find(DEPTH_ESTIMATOR)
    except KeyError:
        return None
    return partial(depth_of, estimator) if isinstance(estimator, DepthEstimator) else None


def with_pictures(
    prompt: PromptEmbedding, redux: Redux | None, prior: ReduxPrior | None, seen: Sequence[Tensor]
) -> PromptEmbedding:
    """The prompt with the tokens of a request's Redux pictures behind it. Source: FluxPriorReduxPipeline.__call__.

    Args: seen: the pictures as the prior takes them.
    """
    if redux is None or prior is None:
        return prompt
    text, pooled = (_scaled(each, redux.prompt_strength) for each in (prompt.tokens, prompt.pooled))
    if redux.strength == 0:  # tokens of zeros are no absence: attention is shared with them, too
        return PromptEmbedding(text, pooled)
    tokens = picture_tokens(prior, seen).to(text.device, text.dtype)
    return PromptEmbedding(torch.cat((text, _scaled(tokens, redux.strength))), pooled)


def _scaled(tensor: Tensor, factor: float) -> Tensor:
    # The pipeline rounds the factor to the model's dtype first.
    return tensor * torch.tensor(factor, dtype=tensor.dtype, device=tensor.device)
