"""Picture sizes in a sibling's training: small ones first, then also those that are served."""

import random
from collections.abc import Mapping

from models.shapes.fast import Size

_SMALL: Mapping[Size, float] = {
    (256, 256): 0.2,
    (384, 384): 0.3,
    (512, 512): 0.3,
    (384, 512): 0.1,
    (512, 384): 0.1,
}
_SERVED: Mapping[Size, float] = {
    (256, 256): 0.06,
    (384, 384): 0.14,
    (512, 512): 0.38,
    (448, 576): 0.07,
    (576, 448): 0.07,
    (1024, 768): 0.1,
    (768, 1024): 0.04,
    (1024, 576): 0.03,
    (576, 1024): 0.03,
    (1024, 1024): 0.08,
}


def random_size(rng: random.Random, done: float) -> Size:
    """A size at the fraction `done` of the run."""
    sizes = _SMALL if done < 0.4 else _SERVED
    return rng.choices(list(sizes), list(sizes.values()))[0]
