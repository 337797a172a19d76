"""Strict configuration binding and small utilities; knows nothing of the other packages."""

from dnnlib.config import bind, construct
from dnnlib.util import UserError, atomic_write, cache_folder, content_hash, format_bytes, format_time

__all__ = ["UserError", "atomic_write", "bind", "cache_folder", "construct", "content_hash", "format_bytes",
           "format_time"]
