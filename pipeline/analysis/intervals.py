"""How far a share of few trials can be trusted: the companion of every coverage a model claims."""

from scipy.stats import beta


def share_interval(hits: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper–Pearson interval of a share: ``hits`` of ``count`` independent trials.

    Structures of one trajectory, and atoms of one structure, are not independent: the interval is then too narrow.

    Args:
        hits: 0 to ``count``.
        count: trials; with none, anything between 0 and 1 is possible.
        confidence: of both sides together.
    """
    tail = (1.0 - confidence) / 2.0
    low = float(beta.ppf(tail, hits, count - hits + 1)) if hits > 0 else 0.0
    high = float(beta.ppf(1.0 - tail, hits + 1, count - hits)) if hits < count else 1.0
    return low, high
