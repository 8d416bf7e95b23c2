"""Confidence intervals of shares such as an accuracy: what other images of the same kind would give."""

import math

LEVEL = 0.95  # of all intervals that are printed or written
_Z = 1.959963984540054  # the normal distribution's quantile at (1 + LEVEL) / 2
_NEGLIGIBLE = 60.0  # logarithm: a million numbers that are so much smaller change no digit of a sum


def wilson(right: int, total: int) -> tuple[float, float]:
    """Return Wilson's score interval at LEVEL for the share `right` / `total`; (0, 1) without images.

    Of all samples, LEVEL have the true share in theirs. It also holds near 0 and 1, where the share plus or
    minus its standard error does not. Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953.
    """
    if total == 0:
        return 0.0, 1.0
    share, spread = right / total, _Z * _Z / total
    centre = share + spread / 2
    width = _Z * math.sqrt(share * (1 - share) / total + spread / total / 4)
    low, high = (centre - width) / (1 + spread), (centre + width) / (1 + spread)
    return 0.0 if right == 0 else low, 1.0 if right == total else high


def interval_of(share: float, total: int) -> tuple[float, float]:
    """Return Wilson's interval of a share of `total` images, as evaluations give it."""
    return wilson(round(share * total), total)


def with_interval(share: float, total: int, words: str = "") -> str:
    """Return a share of `total` images with its interval, as text. words: in front of the interval."""
    low, high = interval_of(share, total)
    return f"{share:.4f} ({words}{low:.4f} to {high:.4f})"


def upper_bound(wrong: int, total: int, risk: float) -> float:
    """Return the bound that the true error rate exceeds with a probability of at most `risk`, for `wrong`
    errors in `total` images; exact, by Clopper and Pearson 1934; 1 without images."""
    if wrong >= total:
        return 1.0
    low, high = wrong / total, 1.0
    for _ in range(50):
        rate = (low + high) / 2
        low, high = (rate, high) if at_most(wrong, total, rate) > risk else (low, rate)
    return high


def at_most(wrong: int, total: int, rate: float) -> float:
    """Return the probability of at most `wrong` errors in `total` images at a true error rate between 0 and
    1, binomial. It is the risk of saying, on seeing these errors, that the rate is lower."""
    right, log_rate, whole = math.log1p(-rate), math.log(rate), math.lgamma(total + 1)
    logs, largest = [], -math.inf
    for k in range(wrong, -1, -1):
        binomial = whole - math.lgamma(k + 1) - math.lgamma(total - k + 1)
        logs.append(binomial + k * log_rate + (total - k) * right)
        largest = max(largest, logs[-1])
        if logs[-1] < largest - _NEGLIGIBLE:  # those of fewer errors are less likely still
            break
    return math.exp(largest + math.log(math.fsum(math.exp(log - largest) for log in logs)))


def mcnemar(first_only: int, second_only: int) -> float:
    """Return the probability of a split at least as uneven as this one of the images that one of two networks
    alone has right, if both are right equally often. Exact: McNemar 1947, binomial, two-sided."""
    return min(1.0, 2 * at_most(min(first_only, second_only), first_only + second_only, 0.5))
