"""Which parts of the family combine, as a Markdown table that is made by asking `resolve`.

\b
    python -m training.combinations     prints the table of docs/methods.md
"""

from __future__ import annotations

from typing import Any

from dnnlib import UserError
from training.presets import PRESETS
from training.resolve import resolve

# A data set with everything: labels and enough images.
DATA = {"path": "", "name": "", "resolution": 256, "aspect": (1, 1), "channels": 3, "num_images": 1000, "label_dim": 10,
        "fingerprint": ""}
COLUMNS: dict[str, dict[str, Any]] = {
    "G FastGAN": {"generator": "fastgan"},
    "G FastGAN-lite": {"generator": "fastgan_lite"},
    "G StyleGAN2": {"generator": "stylegan2"},
    "labels": {"cond": True},
    "feature noise": {"d_noise": "feature"},
    "pixel noise": {"d_noise": "pixel"},
    "non-saturating": {"objective": "nonsaturating"},
    "Wasserstein": {"objective": "wasserstein"},
    "consistency": {"consistency": 1.0},
    "FreezeD": {"freeze_d": 1},
    "information term": {"info_weight": 1.0},
    "σ, f, target": {"sigma": 0.3, "encoder": "head", "target": "paired"},
}


def combines(cfg: str, overrides: dict[str, Any]) -> bool:
    """Whether `overrides` are taken by the preset."""
    try:
        resolve(cfg, overrides, DATA)
    except UserError:
        return False
    return True


def table() -> str:
    """The Markdown table: a row per preset, a column per option."""
    rows = ["| `--cfg` | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for cfg in PRESETS:
        if not cfg.endswith("_demo"):
            cells = ["yes" if combines(cfg, overrides) else "–" for overrides in COLUMNS.values()]
            rows.append(f"| `{cfg}` | " + " | ".join(cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
