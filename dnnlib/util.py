"""Errors for users, atomic files, formatting. Standard library and click only, so that ``--help`` stays fast."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click

MAX_MESSAGE = 2000  # characters


def one_line(text: str) -> str:
    """`text` as one line that can't steer a terminal: what isn't printable is escaped, the middle of too much left out.

    Names and values that messages quote come out of files.
    """
    if len(text) > MAX_MESSAGE:
        text = f"{text[: MAX_MESSAGE * 3 // 4]} … {text[-MAX_MESSAGE // 4 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


class UserError(click.ClickException):
    """Bad input from outside. Printed as one line by every command, which then exits with code 2.

    The message names the file and the flag and says what to do instead; it is made `one_line`.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Yields a binary file that appears under `path` only when it is complete and on disk.

    A temporary file in the same folder is fsynced and renamed; on any error it is removed and
    whatever stood under `path` before stays. A full disk or a read-only folder is a `UserError`.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _fsync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # there is none any more if all went well
            os.unlink(temporary)


def temporary_name(path: Path) -> Path:
    """Where what will be `path` is made: beside it, under a name that no reader takes.

    It has to be known before there is such a file, since a signal may end the process anywhere, and what it leaves must
    be found then.
    """
    return path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"


def _fsync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut; folders can't be opened on every system."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def write_error(path: str | os.PathLike, error: OSError) -> UserError:
    """The one-line `UserError` for a failed write to `path`."""
    remedy = {
        errno.ENOSPC: "the disk is full; free some space and run the same command again",
        errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
        errno.EACCES: "permission denied; choose a folder that you can write to",
        errno.EPERM: "permission denied; choose a folder that you can write to",
        errno.EROFS: "the file system is read-only; choose another folder",
    }.get(error.errno or 0, error.strerror or str(error))
    return UserError(f"Cannot write {path}: {remedy}. Nothing was changed.")


def parse_json(text: bytes | str) -> Any:
    """The value of a JSON text, by the standard: no NaN, no key twice. ValueError otherwise, and for wild depth."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key occurs twice")
        return found

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def cache_folder() -> Path:
    """What can be made again and is kept from run to run lies here: $DICGAN_CACHE, or ~/.cache/dicgan."""
    return Path(os.environ.get("DICGAN_CACHE") or Path.home() / ".cache" / "dicgan")


def content_hash(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def format_time(seconds: float) -> str:
    """``42s``, ``3m 05s``, ``1h 02m``, ``2d 03h``."""
    total = round(seconds)
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m {total % 60:02d}s"
    if total < 86400:
        return f"{total // 3600}h {total // 60 % 60:02d}m"
    return f"{total // 86400}d {total // 3600 % 24:02d}h"


def format_bytes(count: float) -> str:
    """``512 B``, ``3.2 MiB``: binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
