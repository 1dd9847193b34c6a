"""Median and quartiles of repeated measurements, without what a disturbance of the machine added to a few of them."""

import statistics
from collections.abc import Sequence

from planner.contracts.profile import Spread

_LEAST_SAMPLES_FOR_OUTLIERS = 5
_OUTLIER_IQRS = 1.5


def spread(samples: Sequence[float]) -> Spread:
    """Quartiles of the samples, those beyond 1.5 interquartile ranges from the quartiles left out."""
    low, _, high = _quartiles(samples)
    reach = _OUTLIER_IQRS * (high - low)
    kept = [sample for sample in samples if low - reach <= sample <= high + reach]
    if len(samples) < _LEAST_SAMPLES_FOR_OUTLIERS:
        kept = list(samples)
    low, median, high = _quartiles(kept)
    return Spread(p25=low, median=median, p75=high, num_samples=len(kept))


def _quartiles(samples: Sequence[float]) -> list[float]:
    """The three quartiles; of one sample, three times itself."""
    if len(samples) == 1:
        return [samples[0]] * 3
    return statistics.quantiles(samples, n=4, method="inclusive")
