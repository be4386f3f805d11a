"""Pictures at the size that is drawn, and what a mask protects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.pictures.canny import edges
from pipelines.pictures.decoding import crop_centred
from pipelines.pictures.fit import fit, pad, to_mask, to_tensor
from pipelines.pictures.overlay import Overlay
from pipelines.protocol.conditions import InputPicture
from tests.pipelines.families.flux1.families import image, mask, picture


@pytest.mark.parametrize("size", [(43, 30), (48, 32), (41, 27), (1, 1)])
def test_padding_is_undone_by_the_crop(size: tuple[int, int]) -> None:
    given = picture(*size)
    padded = torch.from_numpy(np.array(pad(fit(given, size), (48, 32))))
    assert padded.shape == (32, 48, 3)
    assert np.array_equal(crop_centred(padded, size[1], size[0]).numpy(), np.asarray(image(given)))


def test_a_picture_of_the_right_size_is_not_touched() -> None:
    given = picture(48, 32)
    assert fit(given, (48, 32)).tobytes() == given.pixels
    assert to_tensor(fit(given, (48, 32))).shape == (1, 3, 32, 48)


def test_a_mask_is_hard_or_soft_as_asked() -> None:
    soft = fit(mask(16, 16, (4, 4, 12, 12), 3), (16, 16), "L")
    assert set(to_mask(soft, is_hard=True).unique().tolist()) == {0.0, 1.0}
    assert len(to_mask(soft, is_hard=False).unique()) == 5


def test_pixels_outside_the_mask_are_the_pictures_own_and_edges_blend() -> None:
    below = Image.fromarray(np.full((1, 3, 3), 10, np.uint8))
    weights = Image.fromarray(np.array([[0, 128, 255]], np.uint8))
    drawn = torch.full((1, 3, 3), 210, dtype=torch.uint8)
    blended = Overlay.of(below, weights).over(drawn)
    assert blended[0, :, 0].tolist() == [10, 110, 210]
    whole = Overlay.of(below, weights, blends=False).over(drawn)
    assert whole[0, :, 0].tolist() == [10, 210, 210]


def test_edges_are_white_lines_where_the_colour_changes() -> None:
    square = np.zeros((32, 32, 3), np.uint8)
    square[8:24, 8:24] = 255
    lines = np.asarray(edges(Image.fromarray(square)))
    assert lines.shape == (32, 32, 3)
    assert set(np.unique(lines)) == {0, 255}
    assert lines[:, :6].max() == 0
    assert lines[6:10, 16].max() == 255
    assert lines[14:18, 14:18].max() == 0


def test_a_grey_picture_becomes_colour_where_colour_is_needed() -> None:
    grey = InputPicture(2, 1, 1, b"\x00\xff")
    assert fit(grey, (2, 1)).mode == "RGB"
    assert fit(picture(4, 4), (4, 4), "L").mode == "L"
