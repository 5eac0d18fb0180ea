"""The method a campaign asks for, applied."""

from pipeline.frames import FloatArray
from pipeline.selection.kernel import at_random, lcmd, maxdet, maxdiag, maxdist
from pipeline.settings.selection import SelectionSettings


def pick(settings: SelectionSettings, features: FloatArray, known: FloatArray, *, count: int, seed: int) -> list[int]:
    """Indices of the picked candidates, best first.

    Args:
        settings: which method.
        features: (n, p) posterior-transformed features of the candidates.
        known: (m, p) of the labelled structures.
        count: how many to pick; fewer when there are fewer candidates.
        seed: of random picks.
    """
    match settings.kind:
        case "maxdet":
            return maxdet(features, count)
        case "maxdist":
            return maxdist(features, known, count)
        case "lcmd":
            return lcmd(features, known, count)
        case "maxdiag":
            return maxdiag(features, count)
        case "random":
            return at_random(len(features), count, seed)
