"""Whose turn it is when picks follow shares of the systems in all labels."""

from collections import Counter
from collections.abc import Mapping


def turns(
    available: Mapping[str, int], shares: Mapping[str, float], labelled: Mapping[str, int], count: int
) -> list[str]:
    """Systems of the next ``count`` labels in order, so that the first n of them follow the shares as well as they can.

    Every turn goes to the system that lacks most: with c_s labels so far and T = Σ c_s, the largest (T + 1) w_s − c_s. Shares
    w_s are those of the systems that still have candidates: what is not there gives its turns to the others in the proportion
    of their shares, and takes them back when it comes. A system without a share is served when no other has candidates.

    Args:
        available: candidates of each system.
        shares: of each system in all labels; relative ones will do.
        labelled: labels of each system so far.
        count: turns; fewer when there are fewer candidates.
    """
    left = Counter({system: number for system, number in available.items() if number > 0})
    served = Counter(labelled)
    order: list[str] = []
    for _ in range(min(count, left.total())):
        waiting = sorted(system for system, number in left.items() if number and shares.get(system, 0.0) > 0)
        waiting = waiting or sorted(system for system, number in left.items() if number)
        weights = {system: shares.get(system, 0.0) or 1.0 for system in waiting}
        after = (1 + sum(served[system] for system in waiting)) / sum(weights.values())
        lacking = {system: after * weights[system] - served[system] for system in waiting}
        chosen = max(waiting, key=lambda system: (lacking[system], weights[system]))  # then the first by name
        order.append(chosen)
        served[chosen] += 1
        left[chosen] -= 1
    return order
