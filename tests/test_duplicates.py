"""torch_utils.duplicates and alignment: copies are found, look-alikes aren't, whatever the order of a set."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from torch_utils import alignment, duplicates
from torch_utils.alignment import likeness
from torch_utils.duplicates import Link, Prints, describe, find_duplicates, take_prints


def picture(seed: int, side: int = 64) -> Image.Image:
    """Smooth shapes under finer ones, different for each seed."""
    rng = np.random.default_rng(seed)
    coarse, fine = (Image.fromarray(rng.integers(0, 200, (n, n, 3), dtype=np.uint8)).resize((side, side), 3)
                    for n in (5, 17))
    return Image.blend(coarse, fine, 0.4)


def jpeg(img: Image.Image) -> Image.Image:
    data = io.BytesIO()
    img.save(data, "JPEG", quality=50)
    return Image.open(data).convert("RGB")


COPIES = {
    "jpeg": jpeg,
    "half": lambda img: img.resize((img.width // 2, img.height // 2), Image.Resampling.LANCZOS),
    "crop": lambda img: img.crop((1, 2, 63, 64)),
    "crop and enlarge": lambda img: img.crop((0, 0, 62, 62)).resize((96, 96), Image.Resampling.BICUBIC),
    "brighter": lambda img: ImageEnhance.Brightness(img).enhance(1.2),
    "darker": lambda img: ImageEnhance.Brightness(img).enhance(0.8),
    "mirror": lambda img: img.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "mirror and jpeg": lambda img: jpeg(img.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
}


def prints_of(images: list[Image.Image]) -> Prints:
    return take_prints(lambda i: np.array(images[i]), len(images))


def members(images: list[Image.Image]) -> list[list[int]]:
    return [group.members for group in find_duplicates(prints_of(images)).groups]


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_found_and_nothing_else(name: str) -> None:
    originals = [picture(seed) for seed in range(6)]
    found = find_duplicates(prints_of([*originals, *(COPIES[name](img) for img in originals[:4])]))
    assert [group.members for group in found.groups] == [[i, 6 + i] for i in range(4)]
    kind = "mirrored" if "mirror" in name else "near"
    for group in found.groups:
        assert [(link.first, link.second, link.kind) for link in group.links] == [(*group.members, kind)]
        assert 0.9 <= group.similarity <= 1


def test_exact_copies_are_one_group_with_their_near_copies() -> None:
    one = picture(0)
    found = find_duplicates(prints_of([one, picture(1), one, jpeg(one), one]))
    (group,) = found.groups
    assert group.members == [0, 2, 3, 4]
    assert sorted(link.kind for link in group.links) == ["exact", "exact", "near"]
    assert group.similarity == min(link.similarity for link in group.links) < 1


def test_same_pixels_in_another_shape_are_no_exact_copy() -> None:
    flat = np.arange(48, dtype=np.uint8)
    prints = take_prints(lambda i: flat.reshape((4, 4, 3) if i else (2, 8, 3)), 2)
    assert prints.digests[0] != prints.digests[1]


def test_a_detail_in_another_colour_is_a_difference() -> None:
    """What tells variants of one figure apart, where correlation of the whole is nearly 1."""
    one = picture(0)
    other = one.copy()
    other.paste(ImageEnhance.Brightness(one.crop((20, 20, 32, 32))).enhance(1.5), (20, 20))
    rows = describe(prints_of([one, other]).thumbnails)
    assert float(rows[0] @ rows[1]) > 0.92
    assert members([one, other]) == []


def test_flat_pictures_are_no_copies_of_each_other_brightened() -> None:
    flats = [Image.new("RGB", (40, 40), (level,) * 3) for level in (60, 90, 120)]
    assert members([*flats, Image.new("RGB", (64, 64), (90, 90, 90))]) == [[1, 3]]


def test_groups_are_of_the_content_whatever_the_order() -> None:
    originals = [picture(seed) for seed in range(5)]
    images = [*originals, jpeg(originals[0]), COPIES["mirror"](originals[1]), COPIES["half"](originals[0])]
    images.append(originals[4])
    order = np.random.RandomState(1).permutation(len(images))
    found = {frozenset(group) for group in members(images)}
    shuffled = {frozenset(int(order[i]) for i in group) for group in members([images[i] for i in order])}
    assert found == shuffled == {frozenset(s) for s in ({0, 5, 7}, {1, 6}, {4, 8})}


def test_mirrored_description_is_that_of_the_mirrored_picture() -> None:
    thumbnails = prints_of([picture(seed) for seed in range(3)]).thumbnails
    torch.testing.assert_close(describe(thumbnails[:, :, ::-1].copy()), describe(thumbnails) * duplicates._mirror())


@pytest.mark.parametrize("mirrored", [False, True])
def test_candidates_are_all_pairs_above_the_cosine(mirrored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_QUERIES", 7)
    monkeypatch.setattr(duplicates, "_COSINE", 0.1)
    rows = describe(prints_of([picture(seed, 16) for seed in range(20)]).thumbnails)
    cosines = (rows * duplicates._mirror() if mirrored else rows).double() @ rows.double().T
    expected = torch.nonzero((cosines > 0.1).triu(1)).tolist()
    assert duplicates._candidates(rows, mirrored).tolist() == expected
    assert len(expected) > 5


def test_links_that_join_nothing_new_are_dropped_without_changing_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    one = picture(0)
    images = [copy(one) for name, copy in COPIES.items() if "mirror" not in name] + [picture(1), jpeg(picture(1))]
    expected = find_duplicates(prints_of(images)).groups
    monkeypatch.setattr(duplicates, "_KEPT", -4 * len(images))  # after each link
    assert find_duplicates(prints_of(images)).groups == expected
    assert [len(group.links) for group in expected] == [5, 1]


def test_the_closest_pairs_beneath_the_threshold_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [picture(seed) for seed in range(4)]
    images += [jpeg(img) for img in images]
    monkeypatch.setattr(duplicates, "_CLOSEST", 3)
    found = find_duplicates(prints_of(images), threshold=1)
    assert not found.groups
    values = [link.similarity for link in found.beneath]
    assert len(values) == 3
    assert values == sorted(values, reverse=True)
    assert {(link.first + 4, link.second) for link in found.beneath} <= {(4 + i, 4 + i) for i in range(4)}


def test_forest_keeps_the_closest_links() -> None:
    links = [Link(0, 1, 0.92, "near"), Link(1, 2, 0.95, "near"), Link(0, 2, 0.97, "near"), Link(5, 7, 1.0, "exact")]
    forest = duplicates._forest(links)
    assert [(link.first, link.second) for link in forest] == [(5, 7), (0, 2), (1, 2)]
    assert [group.members for group in duplicates._group(forest)] == [[0, 1, 2], [5, 7]]


def test_likeness_needs_no_close_look_at_what_is_unlike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first look at 16x16 never decides what is near the threshold."""
    thumbnails = torch.from_numpy(prints_of([picture(seed) for seed in range(4)]).thumbnails)
    changed = [COPIES["crop"](picture(0)), jpeg(picture(1)), picture(7), picture(3)]
    copies = torch.from_numpy(prints_of(changed).thumbnails)
    quick = likeness(thumbnails, copies)
    torch.testing.assert_close(likeness(copies, thumbnails), quick, atol=0.02, rtol=0)
    monkeypatch.setattr(alignment, "_HOPELESS", -10.0)
    slow = likeness(thumbnails, copies)
    assert torch.equal(quick[[0, 1, 3]], slow[[0, 1, 3]])
    assert max(quick[2], slow[2]) < 0.65
    assert quick[3] == 1


def test_bad_thresholds_and_images_that_cannot_be_loaded() -> None:
    prints = prints_of([picture(0)])
    assert find_duplicates(prints).groups == []
    for threshold in (0, 1.1):
        with pytest.raises(ValueError, match="threshold"):
            find_duplicates(prints, threshold)

    def load(index: int) -> np.ndarray:
        raise OSError(f"image {index}")

    with pytest.raises(OSError, match="image 0"):
        take_prints(load, 3)
