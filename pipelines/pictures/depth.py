"""How near every pixel of a picture is, for checkpoints that follow depth."""

from __future__ import annotations

from PIL import Image
from torch import Tensor
from torch.nn import functional

from models.auxiliaries import DepthEstimator


def depth_of(estimator: DepthEstimator, image: Image.Image) -> Tensor:
    """(1, 3, H, W) float32 in [-1, 1], the nearest 1: from one end to the other, whatever the estimator's unit."""
    model = estimator.model
    pixels = estimator.image_processor(images=image, return_tensors="pt").pixel_values
    predicted = model(pixels.to(model.device, model.dtype)).predicted_depth.float()
    size = image.height, image.width
    nearness = functional.interpolate(predicted[:, None], size=size, mode="bicubic", align_corners=False)
    low, high = nearness.amin(), nearness.amax()
    unit = (nearness - low) / (high - low).clamp(min=1e-6)
    return (unit * 2 - 1).expand(1, 3, -1, -1)
