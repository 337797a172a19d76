"""The scale of a loss whose gradients pass through float16 (Micikevicius et al. 2018, section 3.2)."""

from __future__ import annotations

from typing import Any

FIRST = 2.0**16
LEAST = 1.0
PATIENCE = 2000  # steps without overflow after which a larger scale is tried


class LossScale:
    """Keeps small gradients above float16's smallest number, as near to overflow as it goes; one for every optimizer.

    The loss is multiplied by `value`, a power of two, and the gradients are divided by it before anybody looks at
    them. A step whose gradients overflow is left out. torch's GradScaler does the same, but asks the device for
    a number of its own in every step, and takes gradients that never become finite for an overflow for ever.
    """

    def __init__(self) -> None:
        self.value, self.steps = FIRST, 0

    def overflowed(self) -> bool:
        """After gradients that weren't finite: halves the scale; False if that can't be the reason any more."""
        if self.value <= LEAST:
            return False
        self.value, self.steps = self.value / 2, 0
        return True

    def stepped(self) -> None:
        """After a step of the optimizer: doubles the scale if there were `PATIENCE` in a row."""
        self.steps += 1
        if self.steps == PATIENCE:
            self.value, self.steps = self.value * 2, 0

    def state_dict(self) -> dict[str, Any]:
        """Plain data that belongs into a checkpoint."""
        return {"value": self.value, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned."""
        self.value, self.steps = float(state["value"]), int(state["steps"])
