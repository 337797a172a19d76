"""Writing image sets: zips, folders, lmdb folders and tar shards that appear only when they are complete."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from dnnlib.lmdb_source import import_lmdb
from dnnlib.util import UserError, atomic_write, temporary_name, write_error

Write = Callable[[str, bytes], None]
_MAP_BYTES = 1 << 40  # of addresses that an lmdb file may grow to
_PUTS = 1000  # values of a transaction


@contextlib.contextmanager
def zip_writer(path: Path) -> Iterator[Write]:
    """Yields write(name, data); the zip (stored, fixed timestamps) appears under `path` only on success."""
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

        def write(name: str, data: bytes) -> None:
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16  # the same bytes on every system
            archive.writestr(info, data)

        yield write


@contextlib.contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder that appears under `path`, replacing what was there, only on success."""
    path = Path(os.path.realpath(path))
    workplace = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        workplace.mkdir()
        new = workplace / "new"
        new.mkdir()
        yield new
        if path.exists():
            os.replace(path, workplace / "old")
        os.replace(new, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if (workplace / "old").exists() and not path.exists():  # the second rename failed
            os.replace(workplace / "old", path)
        shutil.rmtree(workplace, ignore_errors=True)


@contextlib.contextmanager
def folder_writer(path: Path) -> Iterator[Write]:
    """Yields write(name, data) of a folder of files."""
    with _new_folder(path) as new:

        def write(name: str, data: bytes) -> None:
            file = new / name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(data)

        yield write


@contextlib.contextmanager
def lmdb_writer(path: Path) -> Iterator[Write]:
    """Yields write(name, data) of an lmdb folder whose keys are the names."""
    lmdb = import_lmdb()
    with _new_folder(path) as new:
        try:
            with lmdb.open(str(new), map_size=_MAP_BYTES, lock=False) as environment:
                waiting: list[tuple[bytes, bytes]] = []

                def flush() -> None:
                    with environment.begin(write=True) as transaction:
                        transaction.cursor().putmulti(waiting)
                    waiting.clear()

                def write(name: str, data: bytes) -> None:
                    waiting.append((name.encode(), data))
                    if len(waiting) == _PUTS:
                        flush()

                yield write
                flush()
        except lmdb.Error as error:
            raise UserError(f"Cannot write {path}: {error}. Nothing was changed.") from error


@contextlib.contextmanager
def shards_writer(path: Path) -> Iterator[Write]:
    """Yields write(name, data) of a folder of tars: one for each folder of names, in whose order they must come.

    What is in no folder (dataset.json) becomes a file beside the tars.
    """
    with _new_folder(path) as new, contextlib.ExitStack() as stack:
        shard: tarfile.TarFile | None = None
        current = ""

        def write(name: str, data: bytes) -> None:
            nonlocal shard, current
            folder, _, file = name.rpartition("/")
            if not folder:
                (new / name).write_bytes(data)
                return
            if folder != current or shard is None:
                stack.close()
                shard = stack.enter_context(tarfile.open(new / f"{folder}.tar", "x", format=tarfile.USTAR_FORMAT))
                current = folder
            info = tarfile.TarInfo(file)  # of time 0 and no owner: the same bytes everywhere
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))

        yield write
        stack.close()


WRITERS = {"zip": zip_writer, "folder": folder_writer, "lmdb": lmdb_writer, "shards": shards_writer}
