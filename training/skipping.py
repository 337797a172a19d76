"""Images that can't be read while training goes on: named, counted, and replaced by others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from dnnlib import UserError
from torch_utils.rng import generator
from training.dataset import ImageDataset

Pair = Callable[[Sequence[int], Sequence[int]], list[int]]  # of `Conditioning.pair`
Draw = tuple[int, int, int]  # real image, image that its condition comes from, place in the stream
Item = tuple[torch.Tensor, int, int, int, int, str]
SHARE = 0.05  # of a set's images; one is always allowed
TRIES = 32  # in a row for one replacement: if all fail, so do most images


class Drawn(Dataset):
    """The data set by `Draw`: (uint8 image, label, index of the condition, place, real image, problem or "").

    An image with a problem is black; loader workers hand on the problem in this way.
    """

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, draw: Draw) -> Item:
        real, origin, place = draw
        try:
            img, label, _ = self.dataset[real]
        except UserError as error:
            return torch.zeros(self.dataset.shape, dtype=torch.uint8), -1, origin, place, real, error.message
        return img, label, origin, place, real, ""


class Substitutes:
    """Puts other images in the place of those that couldn't be read.

    Which ones depends on (seed, place in the stream) and on what can be read, so that a resumed run takes the same.
    `replaced`: float [n], 1 where an image of the latest batch is a replacement.
    """

    def __init__(self, dataset: ImageDataset, seed: int, pair: Pair | None = None) -> None:
        self.dataset, self.seed, self.pair = dataset, seed, pair
        self.broken: set[int] = set()
        self.replaced = torch.zeros(0)

    def fill(self, img_u8: torch.Tensor, labels: torch.Tensor, origins: torch.Tensor, draws: torch.Tensor,
             reals: torch.Tensor, problems: Sequence[str]) -> None:
        """Changes the rows with a problem, in place.

        `UserError` if more than `SHARE` of the images have turned out broken, or most of them are.
        """
        self.replaced = torch.tensor([float(bool(problem)) for problem in problems])
        for row in self.replaced.nonzero()[:, 0].tolist():
            self._note(int(reals[row]), problems[row])
            img_u8[row], labels[row], origins[row] = self._other(int(draws[row]), problems[row])

    def _other(self, place: int, problem: str) -> tuple[torch.Tensor, int, int]:
        """Image, label and index of the condition of the first of some random draws that can be read."""
        drawn = Drawn(self.dataset)
        for origin in torch.randint(len(self.dataset), (TRIES,), generator=generator(self.seed, "substitute", place)):
            wanted = int(origin)
            real = wanted if self.pair is None else self.pair([wanted], [place])[0]
            img, label, _, _, _, problem = drawn[real, wanted, place]
            if not problem:
                return img, label, wanted
            self._note(real, problem)
        raise UserError(f"{self.dataset.path}: {TRIES} images in a row can't be read, the last one because: {problem} "
                        "Put the data set back, then continue with --resume.")

    def _note(self, real: int, problem: str) -> None:
        index = real % self.dataset.num_images
        if index in self.broken:
            return
        self.broken.add(index)
        tqdm.write(f"Warning: image skipped: {problem} Others take its place.")
        if len(self.broken) > max(1, SHARE * self.dataset.num_images):
            raise UserError(f"{self.dataset.path}: {len(self.broken)} of its {self.dataset.num_images} images can't be "
                            f"read, the last one because: {problem} Put the data set back, then continue with "
                            "--resume.")
