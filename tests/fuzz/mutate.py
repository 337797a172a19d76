"""Mutations of files: of their bytes, of JSON trees, of the entries of zips. All from a seeded generator."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

Change = Callable[[str, bytes, random.Random], bytes]  # name of a part, its content

NUMBERS = (0, 1, -1, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1)
EVIL_NAMES = ("../a.png", "/etc/passwd", "C:\\a.png", "a\x1b[2J\n.png", "a/../../b.png", "\\\\host\\a.png",
              "x" * 60_000, "dataset.json", "a.png")
EVIL_CLASSES = ("os.system", "builtins.eval", "subprocess.Popen", "training.logs.Tee", "torch_utils.stats.JsonLines",
                "torch.load", "pg_modules.fastgan.nn.Linear", "antigravity.x", "training.options.RunOptions",
                "pg_modules.encoder.JointEncoder", "ldm.denoiser.MLP", "training", "", "..", "pg_modules.fastgan.np")
WILD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 10**6, 10**9, 10**18, 10**30, -(10**9), 0.5, -0.0, 1e-300, 1e300, float("nan"),
    float("inf"), "", "x", "\x1b[31m\n\r", "\ud800", "x" * 5000, [], {}, [[]], [0] * 300, {"": {}}, {"$tensor": 0},
    {"$tensor": -1}, {"$dict": [["a", 1], ["a", 2]]}, {"$tuple": []}, [1, 1, 1], [10**9] * 3, *EVIL_CLASSES)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to four changes anywhere: bits, numbers, pieces moved, doubled, removed, the end cut off."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = _change_bytes(data, rng)
    return data


def _change_bytes(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return rng.randbytes(rng.randrange(1, 9))
    at, length = rng.randrange(len(data)), rng.choice((1, 2, 4, 8, rng.randrange(1, 65), rng.randrange(1, 5000)))
    kind = rng.randrange(8)
    if kind == 0:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1:]
    if kind == 1:
        return data[:at] + rng.randbytes(min(length, len(data) - at)) + data[at + length:]
    if kind == 2:
        size = rng.choice((1, 2, 4, 8))
        packed = (rng.choice(NUMBERS) & 2 ** (8 * size) - 1).to_bytes(size, rng.choice(("little", "big")))
        return data[:at] + packed + data[at + len(packed):]
    if kind == 3:
        return data[:at] + data[at + length:]
    if kind == 4:
        return data[:at] + data[at:at + length] * rng.choice((2, 3, 50)) + data[at + length:]
    if kind == 5:
        return data[:at]
    if kind == 6:
        other = rng.randrange(len(data))
        return data[:at] + data[other:other + length] + data[at:]
    return data[:at] + rng.choice((b"\0", b"\xff", b"\n", b"(", b"0")) * length + data[at + length:]


def mutate_tree(tree: Any, rng: random.Random) -> Any:
    """`tree` with one to three of its nodes changed, in place where that is possible."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        tree = _change_node(tree, rng)
    return tree


def _change_node(node: Any, rng: random.Random) -> Any:
    """Walks down at random and changes where it stops."""
    if isinstance(node, dict) and node and rng.random() < 0.93:
        key = rng.choice(list(node))
        if rng.random() < 0.08:
            node[rng.choice(("", "class_name", "x", *list(node)))] = node.pop(key)
        elif rng.random() < 0.05:
            del node[key]
        elif key == "class_name" and rng.random() < 0.7:
            node[key] = rng.choice(EVIL_CLASSES)
        else:
            node[key] = _change_node(node[key], rng)
        return node
    if isinstance(node, list) and node and rng.random() < 0.93:
        at = rng.randrange(len(node))
        choice = rng.random()
        if choice < 0.05:
            node.insert(at, node[rng.randrange(len(node))])
        elif choice < 0.1:
            del node[at]
        else:
            node[at] = _change_node(node[at], rng)
        return node
    if type(node) in (int, float) and rng.random() < 0.4:
        return rng.choice((-node, node + 1, node - 1, node * 2, node * 1000, node / 3, str(node), [node]))
    wild = rng.choice(WILD)
    return json.loads(json.dumps(wild)) if isinstance(wild, (list, dict)) else wild


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """A JSON text with a changed tree, a changed text, wild depth, or a key twice."""
    kind = rng.random()
    if kind < 0.7:
        text = json.dumps(mutate_tree(json.loads(data), rng))
    elif kind < 0.9:
        return mutate_bytes(data, rng)
    elif kind < 0.95:
        depth = rng.choice((50, 900, 990, 1010, 5000, 100_000))
        text = data.decode().replace("[", "[" + "[" * depth + "]" * depth + ",", 1)
    else:
        text = data.decode().replace("{", '{"labels": [], "labels": [],', 1)
    return text.encode("utf-8", "surrogatepass")


def mutate_lines(data: bytes, rng: random.Random) -> bytes:
    """A ``.jsonl`` file with one line changed as JSON, doubled, or torn."""
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    if rng.random() < 0.15:
        return mutate_bytes(data, rng)
    lines[at] = mutate_json(lines[at].strip(), rng) + b"\n"
    return b"".join(lines)


def unzip(data: bytes) -> dict[str, bytes]:
    """Contents of a zip's entries by name."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rezip(parts: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip with right check sums; names may occur twice."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as archive:
        warnings.simplefilter("ignore")
        for name, content in parts:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def mutate_zip(data: bytes, rng: random.Random, change: Change) -> bytes:
    """A zip with changed bytes, header fields, names, or one entry rewritten by `change`, its check sum then right."""
    kind = rng.random()
    if kind < 0.2:
        return mutate_bytes(data, rng)
    if kind < 0.35:
        return _change_header(data, rng)
    parts = list(unzip(data).items())
    at = rng.randrange(len(parts))
    name, content = parts[at]
    if kind < 0.45:
        parts[at] = (rng.choice(EVIL_NAMES), content)
    elif kind < 0.5:
        parts.append((name, content) if rng.random() < 0.5 else (parts[0][0], content))
    elif kind < 0.55:
        del parts[at]
    else:
        parts[at] = (name, change(name, content, rng))
    method = zipfile.ZIP_STORED if rng.random() < 0.9 else rng.choice((8, 12, 14))
    return rezip(parts, method)


def _change_header(data: bytes, rng: random.Random) -> bytes:
    """A field of a local header, of the central directory or of its end."""
    signature, width = rng.choice(((b"PK\x03\x04", 30), (b"PK\x01\x02", 46), (b"PK\x01\x02", 46), (b"PK\x05\x06", 22)))
    places = [i for i in range(len(data)) if data.startswith(signature, i)]
    if not places:
        return mutate_bytes(data, rng)
    at = rng.choice(places) + rng.randrange(4, width)
    size = rng.choice((1, 2, 4))
    packed = (rng.choice(NUMBERS) & 2 ** (8 * size) - 1).to_bytes(size, "little")
    return data[:at] + packed + data[at + len(packed):]


def claim(data: bytes, size: int) -> bytes:
    """A zip whose entries all claim to unpack to `size` bytes."""
    out = bytearray(data)
    for signature, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = data.find(signature)
        while place >= 0:
            out[place + at:place + at + 4] = struct.pack("<I", size)
            place = data.find(signature, place + 4)
    return bytes(out)


def zeros(megabytes: int) -> bytes:
    """A deflate stream of so many megabytes of zeros, of a thousandth of that size."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return piece * megabytes + b"\x03\0"


def exchanged(state: Any, path: str, value: Any) -> Any:
    """A copy of plain data with one value exchanged; path: keys separated by dots."""
    state = copy.deepcopy(state)
    node, keys = state, path.split(".")
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    return state
