"""Hostile data sets and text files: zips, images, JSON, arrays, archives, run directories."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
import zlib
from typing import Any

from fuzz import samples
from fuzz.mutate import claim, exchanged, rezip, zeros
from fuzz.pickles import payloads

NESTED = "[" * 100_000 + "]" * 100_000


def _bomb(parts: list[tuple[str, bytes]], claimed: int) -> bytes:
    """A zip whose last part is a deflate stream that claims to unpack to `claimed` bytes."""
    out = bytearray(rezip(parts))
    for signature, method, size in ((b"PK\x03\x04", 8, 22), (b"PK\x01\x02", 10, 24)):
        place = out.rindex(signature)
        out[place + method:place + method + 2] = struct.pack("<H", zipfile.ZIP_DEFLATED)
        out[place + size:place + size + 4] = struct.pack("<I", claimed)
    return bytes(out)


def zips() -> dict[str, bytes]:
    """Names that lead elsewhere, links, doubles, locks, bombs."""
    picture = samples.png(0)
    files = {f"name-{index}": rezip([(name, picture), ("b.png", picture)]) for index, name in enumerate((
        "../a.png", "/a.png", "C:/a.png", "a/../../b.png", "..\\a.png", "\\a.png"))}
    files["name-control"] = rezip([("a\n\x1b[2J.png", b"x")])
    link = zipfile.ZipInfo("link.png")
    link.external_attr, link.create_system = 0o120777 << 16, 3
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    files["link"] = buffer.getvalue()
    files["twice"] = rezip([("a.png", picture), ("a.png", picture)])
    locked = bytearray(rezip([("a.png", picture)]))
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        locked[locked.index(signature) + at] |= 1
    files["encrypted"] = bytes(locked)
    files["bzip2"], files["lzma"] = (rezip([("a.png", bytes(10**6))], method) for method in (12, 14))
    files["bomb-claimed"] = _bomb([("a.png", zeros(16))], 2**32 - 2)
    files["bomb-hidden"] = _bomb([("a.png", zeros(3000))], 60)
    files["bomb-json"] = _bomb([("a.png", picture), ("dataset.json", zeros(3000))], 2**31)
    files["many"] = rezip([(f"{i}.png", b"") for i in range(20_000)])
    files["claims"] = claim(rezip([("a.png", picture)]), 2**31)
    files["directory"] = rezip([("a.png/", b""), ("b.png/", b"")])
    wrong = samples.labels()[0].replace(b", 1]", b", 1000000000000]")
    files["labels"] = rezip([*((f"00000/img{i:08d}.png", samples.png(i)) for i in range(4)), ("dataset.json", wrong)])
    return files


def tars() -> dict[str, bytes]:
    """Names that lead elsewhere, links, devices, doubles, sizes that lie, headers without end."""
    picture = samples.png(0)
    names = ("../a.png", "/a.png", "C:/a.png", "a/../../b.png", "..\\a.png", "x/" * 80 + "../a.png")
    files = {f"name-{index}": samples.tar_of([(name, picture, {}), ("b.png", picture, {})])
             for index, name in enumerate(names)}
    for title, kind in {"symlink": tarfile.SYMTYPE, "link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE,
                        "pipe": tarfile.FIFOTYPE, "sparse": tarfile.GNUTYPE_SPARSE}.items():
        entry = ("a.png", b"", {"type": kind, "linkname": "/etc/passwd"})
        files[title] = samples.tar_of([("b.png", picture, {}), entry], tarfile.GNU_FORMAT)
    sound = samples.tar_of([("a.png", picture, {}), ("b.png", picture, {})])
    files |= {"twice": samples.tar_of([("a.png", picture, {}), ("./a.png", picture, {})]), "cut": sound[:3000],
              "no-end": sound[:-9000], "gzip": gzip.compress(sound), "none": samples.tar_of([("a.txt", b"x", {})]),
              "directory": samples.tar_of([("../a/", b"", {"type": tarfile.DIRTYPE}), ("b.png", picture, {})]),
              "label": samples.tar_of([("a.png", picture, {}), ("a.cls", b"cat", {})]),
              "label-json": samples.tar_of([("a.png", picture, {}), ("a.json", NESTED.encode()[:60_000], {})])}
    for title, size in {"huge": 2**40, "negative": -512, "claims": 2**30}.items():
        files[title] = samples.tar_of([("a.png", picture, {"pax_headers": {"size": str(size)}})])
    for title, kind in {"long-name": tarfile.GNUTYPE_LONGNAME, "pax": tarfile.XHDTYPE}.items():
        info = tarfile.TarInfo("././@LongLink")
        info.type, info.size = kind, 2**33
        files[title] = info.tobuf(tarfile.GNU_FORMAT) + bytes(10_000)
        info.size = 0
        files[f"{title}-chain"] = info.tobuf(tarfile.GNU_FORMAT) * 20_000 + bytes(1024)
    return files


def pictures() -> dict[str, bytes]:
    """Bombs and foreign formats."""
    header = b"\x89PNG\r\n\x1a\n"

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    def png(width: int, height: int, bits: int = 8, colour: int = 2) -> bytes:
        data = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
        return header + data + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")

    jpeg = samples.encoded(samples.Image.fromarray(samples.pixels(0)), "JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    files = {"png-huge": png(2**31 - 1, 2**31 - 1), "png-large": png(60_000, 60_000), "png-zero": png(0, 0),
             "png-short": png(9000, 9000), "png-deep": png(9000, 9000, 16, 0), "png-line": png(80_000_000, 1),
             "jpeg-huge": jpeg[:at] + b"\xff\xff\xff\xff" + jpeg[at + 4:],
             "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) print\n%%EOF\n",
             "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
             "text": header + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)) + chunk(
                 b"zTXt", b"x\0\0" + zlib.compress(bytes(100 << 20), 1))}
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF"):
        whole = samples.encoded(samples.Image.fromarray(samples.pixels(0)), kind)
        files |= {f"truncated-{kind}-{share}": whole[:len(whole) * share // 100] for share in (10, 60)}
    return files


def texts() -> dict[str, bytes]:
    """JSON of wild depth and size, and labels that are none."""
    name = "00000/img00000000.png"
    values = ("-1", "1.5", "1e3", "NaN", "Infinity", "true", "null", '"1"', "[1]", "1000000000000", "9" * 5000,
              "1" + "0" * 400)
    files = {f"label-{index}": b'{"labels": [["%s", %s]]}' % (name.encode(), value.encode())
             for index, value in enumerate(values)}
    files |= {"depth": b'{"labels": %s}' % NESTED.encode(), "twice": b'{"labels": [], "labels": null}', "array": b"[]",
              "utf-16": '{"labels": 1}'.encode("utf-16"), "binary": bytes(range(256)),
              "name": b'{"labels": [["\\u001b[2J\\n%s", 0]]}' % (b"x" * 100_000),
              "size": b'{"labels": [%s0]}' % (b"[]," * 8_000_000),
              "pairs": b'{"labels": {"%s": 1}}' % name.encode(), "unknown": b'{"labels": [["z.png", 0]]}'}
    return files


def arrays() -> dict[str, bytes]:
    """Headers of ``.npy`` files that lie, and one that holds a pickle."""
    def npy(header: str) -> bytes:
        text = header.encode().ljust(118) + b"\n"
        return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + bytes(640)

    shape = "{{'descr': {}, 'fortran_order': {}, 'shape': {}}}"
    return {"huge": npy(shape.format("'<f4'", False, (10**12, 10**6))),
            "negative": npy(shape.format("'<f4'", False, (-1, 8))),
            "object": npy(shape.format("'|O'", False, (4, 4))), "double": npy(shape.format("'<f8'", False, (4, 4))),
            "code": npy("__import__('os').system('true')"), "vector": npy(shape.format("'<f4'", False, (8,))),
            # A version whose header may have 4 GiB, and says 630 MiB.
            "version": b"\x93NUMPY\x03\0" + samples.features_file()[8:],
            "gzip": gzip.compress(samples.features_file())}


def packed(canary: str) -> dict[str, bytes]:
    """Archives of pickles that call something, of bombs, and of counts that lie."""
    def tar(content: bytes, name: str = "data_batch_1", **fields: Any) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in fields.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))
        return gzip.compress(buffer.getvalue(), 1)

    def many(megabytes: int, before: bytes = b"") -> bytes:
        return b"\x1f\x8b\x08" + bytes(7) + before + zeros(megabytes)

    files = {title: tar(data) for title, data in payloads(canary).items() if title.startswith("pickle")}
    shape = b"\x80\x02}q\0U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\n"
    files |= {"memo": tar(b"\x80\x02}r" + struct.pack("<I", 2**31 - 1) + b"."),
              "hash": tar(b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s."),
              "shape": tar(shape + b"cnumpy\nndarray\n\x8a\x06" + b"\xff" * 5 + b"\0\x85U\x01b\x87Rs."),
              "build": tar(b"\x80\x02cnumpy\ndtype\n}U\x05shapeK\x01sb."),
              "link": tar(b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "none": tar(b"x", "readme"),
              "bomb": many(3000), "long-name": _long_name(2**33)}
    images = struct.pack(">4I", 2051, 2**32 - 1, 28, 28)
    for title, head in {"count": images, "sides": struct.pack(">4I", 2051, 3, 2**31, 2**31), "empty": images[:7],
                        "flat": struct.pack(">4I", 2051, 3, 0, 28)}.items():
        files[f"mnist-{title}@train-images-idx3-ubyte.gz"] = gzip.compress(head + bytes(784))
    lmdb = next(sample for name, sample in samples.archives() if name == "data.mdb")
    return {**files, "lmdb-short@data.mdb": lmdb[:8192], "lmdb-none@data.mdb": bytes(20_000),
            "lmdb-order@data.mdb": lmdb.replace(b"0005", b"zzzz")}


def _long_name(size: int) -> bytes:
    """A tar whose first entry is a name of `size` bytes."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, size
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_000), 1)


def runs() -> dict[str, bytes]:
    """Files of a run directory that aren't what they are called."""
    options = json.loads(samples.run_files()["training_options.json"])
    record = json.loads(samples.run_files()["metric-fid2k_full.jsonl"].splitlines()[-1])
    odd = {"G": 3, "data": [], "run": "x", "data.resolution": 0, "data.resolution ": "64", "data.resolution  ": 1e300,
           "G.encoder": 1, "G.encoder.latent_shape": 5}
    files = {"depth": b'{"data": %s}' % NESTED.encode(), "array": b"[]",
             "utf-16": json.dumps(options).encode("utf-16")}
    for path, value in odd.items():
        files[f"options-{path}"] = json.dumps(exchanged(options, path.strip(), value)).encode()
    wrong = {"results": [], "results.x": "high", "results.x ": 10**400, "metric": 3, "copying": 1, "copying.ratio": "x",
             "copying.three_sample": [1], "detector": "x", "notes": {"a": 1}, "notes ": [1], "num_fake": None}
    for path, value in wrong.items():
        files[f"{path}@metric-fid2k_full.jsonl"] = json.dumps(exchanged(record, path.strip(), value)).encode()
    files["lines@stats.jsonl"] = b"{}\n[]\n{}\n"
    files["nested@stats.jsonl"] = b'{"a": %s}\n{}\n' % (b"[" * 100 + b"]" * 100)
    return files
