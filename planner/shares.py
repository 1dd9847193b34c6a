"""Shares of things that were counted, with the interval that so few of them leave."""

import math
from dataclasses import dataclass
from statistics import NormalDist

_Z = NormalDist().inv_cdf(0.9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A share of `num_all`, and its interval from P10 to P90."""

    frac: float
    low_frac: float
    high_frac: float
    num_all: int


def wilson_share(num_hits: int, num_all: int) -> Share:
    """Hits among all, one independent of the other. Source: Wilson, JASA 22 (1927), 209; 80 % of confidence."""
    assert 0 <= num_hits <= num_all > 0
    frac = num_hits / num_all
    weight = 1 + _Z**2 / num_all
    middle = (frac + _Z**2 / (2 * num_all)) / weight
    half = _Z * math.sqrt(frac * (1 - frac) / num_all + _Z**2 / (4 * num_all**2)) / weight
    low_frac, high_frac = max(0.0, middle - half), min(1.0, middle + half)
    return Share(frac=frac, low_frac=min(frac, low_frac), high_frac=max(frac, high_frac), num_all=num_all)
