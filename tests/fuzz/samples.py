"""Sound files of every kind, small, from which the mutations start."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lmdb
import numpy as np
import torch
from PIL import Image, features
from runs import tiny_config

from dnnlib import construct
from fuzz.mutate import rezip
from fuzz.pickles import file_of
from ldm.denoiser import build
from ldm.presets import resolve as resolve_ldm
from ldm.settings import Sampling

GAN_HASH = "c0ffee" * 10
SIDE = 32
LATENT = (4, 1, 1)
DATA = SimpleNamespace(path=Path("set.zip"), name="set", resolution=SIDE, aspect=(1, 1), channels=3, num_images=40,
                       label_dim=3, fingerprint="f")


def pixels(seed: int, height: int = SIDE, width: int = SIDE, channels: int = 3) -> np.ndarray:
    """Noise as uint8 [H, W, channels]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def encoded(img: Image.Image, kind: str, **options: Any) -> bytes:
    """An image file."""
    buffer = io.BytesIO()
    img.save(buffer, kind, **options)
    return buffer.getvalue()


def png(seed: int, side: int = SIDE) -> bytes:
    """A colour PNG of noise."""
    return encoded(Image.fromarray(pixels(seed, side, side)), "PNG")


def images() -> list[bytes]:
    """Image files of all formats and modes that this Pillow writes."""
    img = Image.fromarray(pixels(0))
    alpha = Image.fromarray(pixels(1, channels=4), "RGBA")
    deep = Image.fromarray(pixels(2)[:, :, 0].astype(np.uint16) * 257)
    frames = [Image.fromarray(pixels(k)) for k in range(3)]
    files = [
        encoded(img, "PNG"), encoded(alpha, "PNG"), encoded(deep, "PNG"), encoded(img.convert("LA"), "PNG"),
        encoded(img.convert("P"), "PNG", transparency=3), encoded(img, "PNG", save_all=True, append_images=frames),
        encoded(img, "JPEG"), encoded(img.convert("CMYK"), "JPEG"), encoded(img, "JPEG", progressive=True),
        encoded(img, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"),
        encoded(img.convert("P"), "GIF", save_all=True, append_images=[f.convert("P") for f in frames]),
        encoded(img, "BMP"), encoded(img, "PPM"), encoded(img, "TGA"), encoded(img, "TIFF", compression="tiff_lzw"),
        encoded(Image.fromarray(pixels(3)[:, :, 0].astype(np.float32) / 255), "TIFF"), encoded(deep, "TIFF"),
    ]
    if features.check("webp"):
        files += [encoded(alpha, "WEBP", lossless=True), encoded(img, "WEBP", save_all=True, append_images=frames)]
    if features.check("jpg_2000"):
        files.append(encoded(img, "JPEG2000"))
    if features.check("avif"):
        files.append(encoded(img, "AVIF"))
    return files


def labels() -> list[bytes]:
    """Texts of dataset.json for the four images of `image_set`."""
    names = [f"00000/img{i:08d}.png" for i in range(4)]
    pairs = [[name, i % 3] for i, name in enumerate(names)]
    return [json.dumps({"labels": pairs, "classes": ["a", "b", "c"], "sources": dict(zip(names, "wxyz", strict=True))})
            .encode(), json.dumps({"labels": pairs}).encode()]


def image_set(method: int = 0) -> bytes:
    """A converted set of four images."""
    parts = [(f"00000/img{i:08d}.png", png(i)) for i in range(4)]
    return rezip([*parts, ("dataset.json", labels()[0])], method)


def tar_of(entries: Sequence[tuple[str, bytes, dict[str, Any]]], kind: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of (name, content, other fields of the header)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for name, content, fields in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in fields.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def tar_set(kind: int) -> bytes:
    """A shard of four images with their labels, one with a long name."""
    names = ["0", "1", "2", "a" * 90 + "/" + "b" * 60]
    return tar_of([entry for i, name in enumerate(names)
                   for entry in ((f"{name}.png", png(i), {}), (f"{name}.cls", b"%d" % (i % 3), {}))], kind)


def archives() -> list[tuple[str, bytes]]:
    """Published data sets in their own packing, with their names."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in (("batches.meta", {b"label_names": [b"plane", b"car"]}),
                              ("data_batch_1", {b"data": pixels(0, 3, 1024).reshape(3, 3072), b"labels": [0, 1, 0]})):
            data = pickle.dumps(content, protocol=2)
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    mnist = struct.pack(">4I", 2051, 3, 28, 28) + pixels(0, 28, 28).tobytes()
    with tempfile.TemporaryDirectory() as folder:
        with lmdb.open(folder, map_size=1 << 20) as env, env.begin(write=True) as transaction:
            for index in range(12):
                transaction.put(b"%04d" % index, png(index))
        pages = (Path(folder) / "data.mdb").read_bytes()
    return [("cifar-10-python.tar.gz", buffer.getvalue()), ("cifar-10-python.tar", gzip.decompress(buffer.getvalue())),
            ("train-images-idx3-ubyte.gz", gzip.compress(mnist)), ("data.mdb", pages)]


def mnist_labels() -> bytes:
    """What lies beside the MNIST images."""
    return gzip.compress(struct.pack(">2I", 2049, 3) + bytes([3, 1, 0]))


def gan_state(cfg: str, **changes: Any) -> dict[str, Any]:
    """What `load_gan` reads of a checkpoint."""
    config = tiny_config(cfg, DATA, **changes)  # type: ignore[arg-type]
    torch.manual_seed(0)
    G = construct(config["G"])
    method = construct(config["conditioning"])
    return {"config": config, "G": {}, "D": {}, "G_ema": G.state_dict(), "versions": {"torch": "2"},
            "progress": {"cur_nimg": 64, "seconds": 1.0}, "conditioning": method.state_dict()}


def checkpoints() -> list[bytes]:
    """Generators with instance latents, with classes and a mapping network, and plain."""
    states = (gan_state("dicgan", encoder="joint"), gan_state("stylegan2", cond=True), gan_state("fastgan_lite"))
    return [file_of("gan", state) for state in states]


def latents() -> list[bytes]:
    """Stored latents, and the checkpoint of a small latent diffusion model."""
    settings = Sampling().resolve({"schedule": {"num_steps": 1000, "kind": "linear"}, "net": {}}).state()
    stored = {"latents": torch.randn(3, *LATENT), "seeds": [0, 1, 5], "gan_hash": GAN_HASH, "space": "f", "labels": [0],
              "network": "net.pkl", "ldm": "ldm.pkl", "ldm_hash": "0", "settings": settings, "provenance": {"ldm": "x"}}
    config = resolve_ldm("mlp", LATENT, {})
    config["net"] |= {"width": 16, "layers": 1, "time_channels": 8}
    unit = torch.eye(4)
    model = {"config": config, "latent_shape": list(LATENT), "gan_hash": GAN_HASH, "normalize": "rms", "space": "f",
             "labels": None, "progress": {"cur_nimg": 64}, "dataset": {"name": "set"}, "network": "net.pkl",
             "whitening": {"kind": "full", "mean": unit[0], "matrix": unit, "inverse": unit, "shrinkage": 0.0},
             "ema": build(config, LATENT).state_dict()}
    return [file_of("latents", stored), file_of("ldm", model)]


def gan_stub() -> Any:
    """What `open_prior` looks at of a generator."""
    encoder = SimpleNamespace(latent_shape=LATENT, backbone=None)
    return SimpleNamespace(hash=GAN_HASH, path="net.pkl", config={"G": {"encoder": {"class_name": "x"}}},
                           G=SimpleNamespace(encoder=encoder))


def priors() -> list[bytes]:
    """One file of each form."""
    rows, k = torch.randn(3, *LATENT), 3
    forms = {
        "Rows": {"rows": rows, "weights": None, "labels": torch.tensor([0, 1, 2])},
        "Vicinal": {"rows": rows, "alpha": 2.0},
        "Gaussians": {"mixture": {"weights": torch.full((k,), 1 / k), "means": torch.randn(k, 4),
                                  "variances": torch.ones(k, 4)}, "shape": list(LATENT)}}
    common = {"provenance": {"mode": "prior", "prior": "gmm:3"}, "gan_hash": GAN_HASH, "network": "net.pkl",
              "encoder": {"spec": {"class_name": "x"}, "weights_hash": None}}
    return [file_of("prior", {"form": form, "prior": prior, **common}) for form, prior in forms.items()]


def stats() -> list[bytes]:
    """A cache of feature statistics."""
    return [file_of("stats", {"features": torch.randn(4, 8), "mean": torch.zeros(8), "cov": torch.eye(8),
                              "key": {"images": "f"}})]


def features_file() -> bytes:
    """A ``.npy`` file of features."""
    buffer = io.BytesIO()
    np.save(buffer, np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32))
    return buffer.getvalue()


def run_files() -> dict[str, bytes]:
    """The text files of a run directory that the report reads."""
    encoder = {"class_name": "pg_modules.encoder.FrozenEncoder", "latent_shape": [16, 1, 1]}
    options = {"cfg": "dicgan_demo", "data": {"name": "set", "num_images": 40, "resolution": 64, "mirror": True},
               "run": {"batch": 16}, "G": {"encoder": encoder}}
    lines = [{"Progress/kimg": float(t), "Loss/G/loss": {"num": 3, "mean": 1 / t, "std": 0.1},
              "Timing/total_sec": 9.0 * t, "Latent/retrieval_rank": {"mean": 100.0 / t},
              "Latent/retrieval_chance": {"mean": 128.5}}
             for t in range(1, 5)]
    records = [{"results": {"fid2k_full": 111.5, "kid2k_full": 0.04, "kid2k_full_std": 0.001}, "metric": name,
                "num_fake": 2000, "num_real": 40, "detector": {"name": "lite2"}, "notes": ["a note"],
                "copying": {"ratio": 0.9, "three_sample": {"c_t": -0.2}}, "snapshot_pkl": "network-snapshot-000006.pkl"}
               for name in ("fid2k_full", "retrieval", "kid2k_full")]
    return {"training_options.json": json.dumps(options).encode(), "log.txt": b"Device:  cpu\n",
            "stats.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode(),
            "metric-fid2k_full.jsonl": "".join(json.dumps(record) + "\n" for record in records).encode()}
