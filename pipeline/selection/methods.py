"""The method a campaign asks for, applied."""

from pipeline.selection.kernel import at_random, lcmd, maxdet, maxdiag, maxdist
from pipeline.selection.rows import Features
from pipeline.selection.spread import Spread
from pipeline.settings.selection import SelectionSettings


def pick(
    settings: SelectionSettings,
    features: Features,
    known: Features,
    spread: Spread,
    *,
    count: int,
    seed: int,
    device: str = "cpu",
) -> list[int]:
    """Numbers of the picked candidates, best first; the same on every rank.

    Args:
        settings: which method.
        features: (n, p) posterior-transformed features of the candidates on this rank.
        known: (m, p) of the labelled structures on this rank.
        spread: which candidates are on this rank.
        count: how many to pick; fewer when there are fewer candidates.
        seed: of random picks.
        device: what computes.
    """
    match settings.kind:
        case "maxdet":
            return maxdet(features, count, spread, device)
        case "maxdist":
            return maxdist(features, known, count, spread, device)
        case "lcmd":
            return lcmd(features, known, count, spread, device)
        case "maxdiag":
            return maxdiag(features, count, spread, device)
        case "random":
            return at_random(spread.count, count, seed)
