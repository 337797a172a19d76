"""The interface of noise in front of the discriminator, and the identity."""

from __future__ import annotations

from typing import Any

import torch


class DNoise:
    """No noise. Methods override what they change; the discriminator calls all three places in order.

    t_dim  width of the embedding of the diffusion time that `image` returns and D is told as the part "time" of c;
           0 = D isn't told
    """

    t_dim = 0

    def image(self, img: torch.Tensor, generator: torch.Generator | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Augmented images [N, C, H, W] → the same shape, and [N, t_dim] or None. `generator`: on the CPU."""
        return img, None

    def first(self, maps: list[torch.Tensor], generator: torch.Generator | None) -> list[torch.Tensor]:
        """Maps [N, C, H, W] of the frozen network, in front of cross-channel mixing → maps of the same shapes."""
        return maps

    def last(self, maps: list[torch.Tensor], generator: torch.Generator | None) -> list[torch.Tensor]:
        """Projected maps [N, C, H, W], in front of the heads → maps of the same shapes."""
        return maps

    def observe(self, real_logits: torch.Tensor) -> None:
        """Takes note of D's logits [N, L] on reals, once per (micro-)batch of D's step."""

    def after_step(self, batch: int) -> dict[str, float]:
        """Adaptation after an iteration of `batch` images; what is to be logged of it."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Plain data that belongs into a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned."""
        assert not state, "no noise has no state"
