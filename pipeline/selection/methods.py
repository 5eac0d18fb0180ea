"""The method a campaign asks for, applied."""

from pipeline.frames import FloatArray
from pipeline.selection.kernel import at_random, lcmd, maxdet, maxdiag, maxdist
from pipeline.selection.spread import Spread
from pipeline.settings.selection import SelectionSettings


def pick(
    settings: SelectionSettings, features: FloatArray, known: FloatArray, spread: Spread, *, count: int, seed: int
) -> list[int]:
    """Numbers of the picked candidates, best first; the same on every rank.

    Args:
        settings: which method.
        features: (n, p) posterior-transformed features of the candidates on this rank.
        known: (m, p) of the labelled structures on this rank.
        spread: which candidates are on this rank.
        count: how many to pick; fewer when there are fewer candidates.
        seed: of random picks.
    """
    match settings.kind:
        case "maxdet":
            return maxdet(features, count, spread)
        case "maxdist":
            return maxdist(features, known, count, spread)
        case "lcmd":
            return lcmd(features, known, count, spread)
        case "maxdiag":
            return maxdiag(features, count, spread)
        case "random":
            return at_random(spread.count, count, seed)
