"""The order of what is kept: picks first, then the most uncertain of the others.

Shapes: n candidates on this rank, m labelled structures, p features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.frames import FloatArray
from pipeline.selection.methods import pick
from pipeline.selection.quotas import turns
from pipeline.selection.rows import Features
from pipeline.selection.spread import Spread
from pipeline.settings.selection import SelectionSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How ``count`` candidates are picked: settings, seed of random picks, and what computes."""

    settings: SelectionSettings
    count: int
    seed: int
    device: str = "cpu"

    def picks(self, features: Features, known: Features, spread: Spread) -> list[int]:
        """What is worth most, best first; the same on every rank.

        Args:
            features: (n, p).
            known: (m, p) of the labelled structures on this rank.
            spread: which of all candidates these are.
        """
        return self._some(features, known, spread, self.count)

    def shared_picks(
        self,
        features: Features,
        known: Features,
        spread: Spread,
        *,
        systems: Sequence[str],
        shares: Mapping[str, float],
        labelled: Mapping[str, int],
    ) -> list[int]:
        """Each system's picks among its own candidates, in turns that follow the systems' shares of all labels.

        Args:
            features, known, spread: as for :meth:`picks`.
            systems: (n,) of the candidates on this rank.
            shares: of each system in all labels.
            labelled: labels of each system so far.
        """
        names = np.array(systems, dtype=np.str_)
        places = {
            system: np.flatnonzero(names == system)
            for system in sorted(set().union(*spread.ranks.gather(set(systems))))
        }
        own = {system: spread.kept(here) for system, here in places.items()}
        order = turns({system: part.count for system, part in own.items()}, shares, labelled, self.count)
        queues = {}
        for system in sorted(set(order)):
            here = places[system]
            found = self._some(features[here], known, own[system], order.count(system))
            items = np.sort(np.concatenate(spread.ranks.gather(spread.items[here])))
            queues[system] = iter(items[found].tolist())
        return [next(queues[system]) for system in order]

    def _some(self, features: Features, known: Features, spread: Spread, count: int) -> list[int]:
        return pick(self.settings, features, known, spread, count=count, seed=self.seed, device=self.device)


def most_uncertain(bounds: FloatArray, spread: Spread, without: Sequence[int], count: int) -> list[int]:
    """At most ``count`` candidates of largest bound, on ties the lower ones; the same on every rank.

    Args:
        bounds: (n,) of the candidates on this rank; NaN, which nothing bounds, comes before all numbers.
        spread: which of all candidates these are.
        without: candidates that are not asked for.
        count: none when it is not positive.
    """
    if count <= 0:
        return []
    values = np.where(np.isnan(bounds), np.inf, bounds)
    parts = spread.ranks.gather((values, spread.items))
    values, items = (np.concatenate(column) for column in zip(*parts, strict=True))
    ordered = items[np.lexsort((items, -values))]
    return [int(item) for item in ordered[~np.isin(ordered, list(without))][:count]]
