"""Sizes of pictures that the networks take: squares and 2:1, the short side a power of two. Standard library only."""

from __future__ import annotations

MIN_RESOLUTION, MAX_RESOLUTION = 32, 1024


def is_valid_resolution(side: int) -> bool:
    """True for the short sides that the networks take: powers of two from 32 to 1024."""
    return MIN_RESOLUTION <= side <= MAX_RESOLUTION and side & (side - 1) == 0


def suggest_resolution(side: float) -> int:
    """The largest valid resolution that is at most `side`; 32 for smaller ones."""
    return 1 << min(max(int(side).bit_length() - 1, 5), 10)


def is_valid_size(width: int, height: int) -> bool:
    """True for the sizes that the networks take: a valid short side, and the other one equal or exactly twice it."""
    short, long = sorted((width, height))
    return is_valid_resolution(short) and long in (short, 2 * short)


def suggest_size(width: float, height: float) -> tuple[int, int]:
    """The valid (width, height) of the nearest shape, with the largest short side that fits in; 32 if none does."""
    if width >= 2**0.5 * height:
        short = suggest_resolution(min(width / 2, height))
        return 2 * short, short
    if height >= 2**0.5 * width:
        short = suggest_resolution(min(width, height / 2))
        return short, 2 * short
    short = suggest_resolution(min(width, height))
    return short, short


def format_size(width: int, height: int) -> str:
    """As ``--resolution`` takes it: ``64`` for a square, ``128x64`` (width first) otherwise."""
    return str(width) if width == height else f"{width}x{height}"
