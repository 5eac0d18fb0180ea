"""The recovery ladder: from the failed tries of a label to the next one, or to none. Pure.

Measures accumulate, so that no combination comes twice; whatever fails, a label ends after as many tries as it may have.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pipeline.records import Cause, Measure, Try
from pipeline.settings.launch import LaunchSettings

LADDER: dict[Cause, tuple[Measure, ...]] = {
    Cause.NOT_CONVERGED: (
        Measure.MORE_STEPS,
        Measure.GENTLE_MIXING,
        Measure.OTHER_SOLVER,
        Measure.SMEARED_START,
    ),
    Cause.TIME_LIMIT: (Measure.MORE_TIME,),
    Cause.OUT_OF_MEMORY: (Measure.MORE_MEMORY, Measure.FEWER_RANKS),
    # under a cap, a program that does not look whether it got its memory crashes
    Cause.CRASH: (Measure.FRESH_START, Measure.MORE_MEMORY, Measure.FEWER_RANKS),
    Cause.BAD_OUTPUT: (Measure.FRESH_START,),
    # another state of the electrons may have been found
    Cause.IMPLAUSIBLE: (Measure.FRESH_START, Measure.OTHER_SOLVER),
}
"""What helps against a cause, the cheapest first; causes that are not here would only come again."""
TWICE = frozenset({Measure.MORE_TIME, Measure.MORE_MEMORY})
"""Measures that may be taken a second time; of FEWER_RANKS, as often as there are ranks to halve."""
GOES_ON = frozenset({Measure.MORE_STEPS, Measure.MORE_TIME})
"""Measures that begin where the try before ended."""
KEEPS_GUESS = frozenset({Measure.MORE_TIME, Measure.MORE_MEMORY, Measure.FEWER_RANKS})
"""Measures beside which a label still starts from a nearby one: any other doubts that start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The next try of a label.

    Attributes:
        measures: what it does differently from the settings, in the order it came to that.
        ranks: MPI ranks.
        memory_GB: cap per rank; None: none.
        time_s: wall time.
        previous: directory of the try it goes on from, as that try names it; empty: none.
        guess: whether it starts from a nearby label, where there is one.
    """

    measures: tuple[Measure, ...]
    ranks: int
    memory_GB: float | None
    time_s: float
    previous: str
    guess: bool


def next_plan(
    tries: Sequence[Try], *, can: Collection[Measure], launch: LaunchSettings, ranks: int, max_tries: int
) -> Plan | None:
    """What to try next.

    Args:
        tries: the failed ones, in their order.
        can: measures the reference knows.
        launch: time and memory of the first try.
        ranks: of the first try.
        max_tries: of one label.

    Returns:
        None: nothing else can be done, or it was tried often enough.
    """
    if not tries:
        return _planned((), launch, ranks, previous="")
    last = tries[-1]
    if last.final or len(tries) >= max_tries:
        return None
    for measure in LADDER.get(last.cause, ()):
        if measure in can and _helps(measure, last, launch, ranks):
            previous = last.directory if measure in GOES_ON else ""
            return _planned((*last.measures, measure), launch, ranks, previous=previous)
    return None


def _helps(measure: Measure, last: Try, launch: LaunchSettings, ranks: int) -> bool:
    """Whether a measure changes anything beside those taken already."""
    taken = last.measures.count(measure)
    match measure:
        case Measure.MORE_MEMORY:
            return launch.memory_GB is not None and taken < 2
        case Measure.FEWER_RANKS:
            if last.cause is Cause.OUT_OF_MEMORY and launch.memory_GB is not None:
                return False  # the cap is each rank's own, whatever their number
            return _halved(ranks, taken + 1, launch) < _halved(ranks, taken, launch)
        case _:
            return taken < (2 if measure in TWICE else 1)


def _planned(measures: tuple[Measure, ...], launch: LaunchSettings, ranks: int, *, previous: str) -> Plan:
    memory_GB = launch.memory_GB
    return Plan(
        measures=measures,
        ranks=_halved(ranks, measures.count(Measure.FEWER_RANKS), launch),
        memory_GB=None if memory_GB is None else memory_GB * 2 ** measures.count(Measure.MORE_MEMORY),
        time_s=float(launch.limit_s * 2 ** measures.count(Measure.MORE_TIME)),
        previous=previous,
        guess=KEEPS_GUESS.issuperset(measures),
    )


def _halved(ranks: int, times: int, launch: LaunchSettings) -> int:
    return max(ranks >> times, launch.nodes)
