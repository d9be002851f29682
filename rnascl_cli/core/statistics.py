"""Confidence intervals of accuracies."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""


def wilson_interval(fraction: float, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a proportion (Wilson 1927).

    Unlike the normal approximation it stays inside [0, 1] and is not empty at 0 or 1.

    Args:
        fraction: Observed proportion, in [0, 1].
        n: Number of observations, at least 1.
    """
    assert n > 0
    assert 0 <= fraction <= 1
    z2 = Z_95**2
    center = (fraction + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(fraction * (1 - fraction) / n + z2 / (4 * n * n))
    low = 0.0 if fraction == 0 else max(0.0, center - half)
    high = 1.0 if fraction == 1 else min(1.0, center + half)
    return low, high
