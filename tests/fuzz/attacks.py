"""Files made by hand to do harm: bombs, lies about sizes, names that lead elsewhere, pickles that call something."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import torch

from fuzz import attacks_sets as sets
from fuzz import samples
from fuzz.mutate import claim, exchanged, rezip, unzip
from fuzz.pickles import TENSOR, file_of, payloads, pickle_text, record, with_text
from torch_utils import checkpoint


def attacks(kind: str, canary: str) -> dict[str, bytes]:
    """Attacks on readers of a kind of file, by title; a name of the file may follow behind an @.

    canary: the file that code in them would write.
    """
    return {"checkpoint": lambda: {**payloads(canary), **pickled(samples.checkpoints()[2]), **configured(canary)},
            "latents": lambda: {**payloads(canary), **stored(*samples.latents())},
            "prior": lambda: {**payloads(canary), **prior_parts(samples.priors())},
            "zip": sets.zips, "tar": sets.tars, "image": sets.pictures, "labels": sets.texts, "features": sets.arrays,
            "archive": lambda: sets.packed(canary), "run": sets.runs, "stats": lambda: payloads(canary)}[kind]()


# Tensors and pickles.


def _stream(data: bytes, change: Callable[[bytes], bytes], extra: dict[str, bytes] | None = None) -> bytes:
    parts = unzip(data)
    name = next(name for name in parts if name.endswith("/data.pkl"))
    parts[name] = change(parts[name])
    return rezip([*parts.items(), *(extra or {}).items()])


def _places(stream: bytes) -> tuple[int, int]:
    """Where the first tensor's description begins in a pickle, and where it is called."""
    start = stream.index(TENSOR)
    return start, stream.index(b"ccollections\nOrderedDict\n", start)


def pickled(sound: bytes) -> dict[str, bytes]:
    """Descriptions of tensors that lie, in a checkpoint that is sound otherwise."""
    tensors: dict[str, Any] = {
        "expanded": torch.zeros(1).expand(10**6, 10**6), "overlapping": torch.zeros(8).as_strided((4, 4), (1, 1)),
        "transposed": torch.randn(3, 4).T, "sparse": torch.eye(3).to_sparse(),
        "meta": torch.empty(10**9, device="meta"), "complex": torch.zeros(3, dtype=torch.cfloat),
        "quantised": torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8),
        "parameter": torch.nn.Parameter(torch.zeros(3)), "number": 3, "text": "x", "nested": [torch.zeros(3)]}
    files = {f"tensor-{name}": record("gan", '{"$dict": []}', [tensor]) for name, tensor in tensors.items()}

    def resize(stream: bytes, new: bytes) -> bytes:
        """The first tensor's numbers after its storage, up to its call: offset, size and stride."""
        start, end = _places(stream)
        cut = stream.index(b"Q", start) + 1
        return stream[:cut] + new + b"\x89" + stream[end:]

    size, side = struct.pack("<i", 2**31 - 1), b"\x85K\x01\x85"  # ends a size of one side, and has its stride
    shapes = {"beyond": b"J" + size + b"K\x01" + side, "huge": b"K\0J" + size + side,
              "negative": b"K\0J" + struct.pack("<i", -5) + side, "strides": b"K\0K\x02K\x02\x86K\0K\0\x86",
              "long": b"K\0\x8a\x09" + b"\xff" * 8 + b"\0" + side, "deep": b"K\0)" + b"\x85" * 100_000 + b")",
              "memo": b"r" + struct.pack("<I", 2**31 - 1) + b"K\0))"}
    for name, new in shapes.items():
        files[f"shape-{name}"] = _stream(sound, lambda stream, new=new: resize(stream, new))  # type: ignore[misc]
    files["key-deep"] = _stream(sound, lambda stream: b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"K\x01s.")
    parts = unzip(sound)
    files["deflated"] = rezip(list(parts.items()), zipfile.ZIP_DEFLATED)
    files["twice"] = rezip([*parts.items(), *list(parts.items())[-1:]])
    files["claims"] = claim(rezip(list(parts.items())), 2**31)
    files["no-tensors"] = rezip([(name, data) for name, data in parts.items() if "/data/" not in name])
    files["nan"] = record("gan", '{"$dict": [["G_ema", {"$tensor": 0}]]}', [torch.full((3,), float("nan"))])
    trees = {"depth": sets.NESTED, "twice": '{"$dict": [["a", 1], ["a", 2]]}', "index": '{"$tensor": -1}',
             "bool": '{"$tensor": false}', "two": '{"$tensor": 0, "$dict": []}', "key": '{"$dict": [[[], 1]]}',
             "digits": "1" * 100_000}
    files |= {f"json-{name}": record("gan", text, [torch.zeros(1)]) for name, text in trees.items()}
    files["next-format"] = record("gan", "{}", [], "dicgan-\x1b[31m\n2")
    return files


def configured(canary: str) -> dict[str, bytes]:
    """Configurations that name what they shouldn't, or sizes that no machine has."""
    big = 10**9
    by_cfg: dict[int, dict[str, Any]] = {
        0: {"G.img_resolution": big, "G.ngf": big, "G.z_dim": big, "G.aspect": [big, 1], "G.h_channels": big,
            "G.encoder.channels": big, "G.encoder.latent_shape": [big, big, big], "G": None, "G.ngf ": 1,
            "G.z_dim  ": "x", "G.encoder.class_name": "pg_modules.encoder.HeadEncoder",
            "conditioning": {"class_name": "os.system"}},
        1: {"G.map_layers": 10**6, "G.channel_max": 2**20, "G.w_dim": 2**19,
            "G.c_parts": {"x": big}, "conditioning.c_dim": big},
        2: {"G.class_name": "os.system", "G.ngf": 2**18}}
    files = {}
    for number, changes in by_cfg.items():
        sound = samples.checkpoints()[number]
        state = checkpoint_config(sound)
        for path, value in changes.items():
            config = exchanged(state, path.strip(), value)
            files[f"config-{path}"] = with_config(sound, config)
    specs = {"system": {"class_name": "os.system", "command": f"touch {canary}"},
             "popen": {"class_name": "subprocess.Popen", "args": ["touch", canary]},
             "tee": {"class_name": "training.logs.Tee", "path": canary},
             "lines": {"class_name": "torch_utils.stats.JsonLines", "path": canary, "keep_lines": 0},
             "import": {"class_name": "antigravity.x"}, "script": {"class_name": "training.report.main"},
             "inner": {"class_name": "pg_modules.fastgan.nn.Linear", "in_features": 1, "out_features": 1}}
    plain = samples.checkpoints()[2]
    for name, spec in specs.items():
        files[f"class-{name}"] = with_config(plain, {**checkpoint_config(plain), "G": spec})
    return files


def checkpoint_config(data: bytes) -> Any:
    """The configuration in a checkpoint."""
    parts = unzip(data)
    text = pickle_text(next(content for name, content in parts.items() if name.endswith("/data.pkl")))
    return checkpoint.unpack(dict(json.loads(text)["$dict"])["config"], [])


def with_config(data: bytes, config: Any) -> bytes:
    """A checkpoint with another configuration."""
    def change(text: str) -> str:
        tree = json.loads(text)
        for pair in tree["$dict"]:
            if pair[0] == "config":
                pair[1] = checkpoint.pack(config, [])
        return json.dumps(tree)

    return with_text(data, change)


def _restate(data: bytes, kind: str, changes: dict[str, Any]) -> dict[str, bytes]:
    """Checkpoints of a state in which one part at a time is exchanged."""
    buffer = torch.load(io.BytesIO(data), weights_only=True)
    state = checkpoint.unpack(json.loads(buffer["json"]), buffer["tensors"])
    files = {}
    for path, value in changes.items():
        files[f"state-{path}"] = file_of(kind, exchanged(state, path.strip(), value))
    return files


def stored(latents: bytes, model: bytes) -> dict[str, bytes]:
    """Latents and latent diffusion models whose parts don't fit."""
    files = _restate(latents, "latents", {
        "latents": torch.zeros(3, 4, 1, 1, dtype=torch.int64), "latents ": torch.zeros(2, 4, 1, 1), "latents  ": [1],
        "seeds": [0, 0, 1], "seeds ": [0.5, 1, 2], "seeds  ": [True, 1, 2], "seeds   ": torch.zeros(3),
        "settings": {"x": 1}, "labels": ["a"], "labels ": [-1], "provenance": 3, "ldm": None, "space": "q",
        "gan_hash": torch.zeros(2)})
    models = _restate(model, "ldm", {
        "ema": {0: torch.zeros(1)}, "ema ": {"x": 1}, "latent_shape": [10**9, 1, 1], "latent_shape ": [4, 1],
        "config.net.width": 2**19, "config.net.layers": 2**19, "config.net.class_name": "os.system", "config.net": [],
        "config.schedule.num_steps": 10**9, "config.schedule": None, "config.parametrisation": "x", "config.cfg": 1,
        "whitening.matrix": torch.zeros(3, 3), "whitening": {}, "labels": torch.tensor([-1]), "space": "q",
        "normalize": "x", "progress": {}, "dataset": 1})
    return files | {f"model-{name}": data for name, data in models.items()}


def prior_parts(sound: list[bytes]) -> dict[str, bytes]:
    """Priors whose parts don't fit."""
    every = (
        {"prior.rows": torch.zeros(0, 4, 1, 1), "prior.labels": torch.tensor([-1, 0, 0]),
         "prior.labels ": torch.zeros(3), "prior.labels  ": torch.tensor([0]), "prior.weights": torch.ones(2),
         "prior": {}, "prior.extra": 1, "form": "Rows\n", "form ": [], "encoder": {"spec": torch.zeros(3)},
         "encoder ": {0: 1, "a": 2}, "provenance": {}, "gan_hash": torch.zeros(2)},
        {"prior.alpha": 0.0, "prior.alpha ": float("nan"), "prior.alpha  ": "x",
         "prior.rows": torch.zeros(3, 5, 1, 1)},
        {"prior.mixture.weights": torch.zeros(3), "prior.mixture.weights ": torch.tensor([-1.0, 1, 1]),
         "prior.mixture.means": torch.zeros(2, 4), "prior.mixture.variances": -torch.ones(3, 4), "prior.shape": [10**9],
         "prior.mixture": None})
    files = {}
    for data, changes in zip(sound, every, strict=True):
        files |= {f"{len(files)}-{name}": one for name, one in _restate(data, "prior", changes).items()}
    return files
