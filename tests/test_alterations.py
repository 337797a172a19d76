"""Alterations of reference images do what they say, and the same in every call."""

from __future__ import annotations

import pytest
import torch

from dnnlib import UserError
from training.alterations import ALTERATIONS, GREY, alter, cutmix, cutout, gray, luminance, parse_alterations, sketch


def pictures(count: int = 3, channels: int = 3, height: int = 32, width: int = 64) -> torch.Tensor:
    """Noise without the value of a grey box."""
    images = torch.randint(0, 255, (count, channels, height, width), dtype=torch.uint8)
    return torch.where(images == GREY, 255, images)


def box_of(changed: torch.Tensor) -> tuple[int, int]:
    """Height and width of the area [H, W] that is changed; it must be a full rectangle."""
    rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
    assert changed[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1].all()
    return len(rows), len(columns)


@pytest.mark.parametrize("name", ALTERATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_pure_repeatable_and_of_the_same_shape(name: str, channels: int) -> None:
    images = pictures(channels=channels)
    before = images.clone()
    result = ALTERATIONS[name](images, 5)
    assert torch.equal(images, before)
    assert torch.equal(result, ALTERATIONS[name](images, 5))
    assert (result.shape, result.dtype) == (images.shape, torch.uint8)


def test_cutout_greys_a_quarter() -> None:
    images = pictures()
    result = cutout(images, 0)
    for before, after in zip(images, result, strict=True):
        changed = (before != after).any(0)
        assert box_of(changed) == (16, 32)
        assert (after[:, changed] == GREY).all()
    assert not torch.equal(result == GREY, cutout(images, 1) == GREY)
    # The place depends on the number of the image, not on how many there are.
    assert torch.equal(cutout(images[:1], 0), result[:1])


def test_cutmix_pastes_the_next_reference_at_its_place() -> None:
    images = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 3, 32, 64) * 100
    result = cutmix(images, 0)
    for i in range(3):
        changed = result[i, 0] != images[i, 0]
        assert box_of(changed) == (16, 32)
        assert (result[i, :, changed] == images[(i + 1) % 3, 0, 0, 0]).all()
    noise = pictures()
    mixed = cutmix(noise, 0)
    assert ((mixed[0] == noise[0]) | (mixed[0] == noise[1])).all()
    with pytest.raises(UserError, match="--ref with 2 images"):
        cutmix(images[:1], 0)


def test_gray_keeps_luminance() -> None:
    images = pictures()
    result = gray(images)
    assert torch.equal(result[:, 0], result[:, 1])
    assert torch.equal(result[:, 0], result[:, 2])
    assert (result[:, :1].float() - luminance(images)).abs().max() <= 0.5
    red = torch.tensor([255, 0, 0], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 32, 32)
    assert gray(red)[0, 0, 0, 0] == 76
    single = pictures(channels=1)
    assert torch.equal(gray(single), single)


def test_sketch_draws_edges_on_white() -> None:
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[:, :, :, 16:] = 200
    drawn = sketch(image)[0]
    assert torch.equal(drawn[0], drawn[1])
    assert (drawn[0, :, 15:17] == 0).all()
    assert (drawn[0, :, :13] == 255).all()
    assert (drawn[0, :, 19:] == 255).all()
    # Across in the same way as down, and nothing where nothing is.
    assert torch.equal(sketch(image.transpose(2, 3))[0], drawn.transpose(1, 2))
    assert (sketch(torch.full_like(image, 90)) == 255).all()
    faint = torch.full_like(image, 90)
    faint[:, :, :, 16:] = 92
    assert sketch(faint).min() > 150


def test_names_and_order() -> None:
    images = pictures()
    assert parse_alterations("gray, cutout") == ["gray", "cutout"]
    assert torch.equal(alter(images, ["gray", "cutout"], 3), cutout(gray(images), 3))
    assert torch.equal(alter(images, []), images)
    with pytest.raises(UserError, match="--alter blur: choose cutmix, cutout, sketch, gray"):
        parse_alterations("gray,blur")
