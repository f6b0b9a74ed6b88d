"""The interval of a share."""

from __future__ import annotations


def wilson(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Bounds of the 95% interval of a proportion of at least one trial. Source: Wilson 1927."""
    p, zz = right / n, z * z / n
    middle, half = p + zz / 2, z * ((p * (1 - p) + zz / 4) / n) ** 0.5
    return (middle - half) / (1 + zz), (middle + half) / (1 + zz)
