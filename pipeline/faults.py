"""Faults that hit one label after the other: found before they burn the budget. Pure functions of what came."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.events import LabelFailed
from pipeline.records import Cause
from pipeline.settings.labels import RecoverySettings

OF_ALL = frozenset({Cause.MISSING_PROGRAM, Cause.MISSING_FILE, Cause.BAD_INPUT})
"""Causes that hit every structure."""
FIRST = 3
"""So many labels may fail for one of these before the first good one."""

REMEDIES = {
    Cause.NOT_CONVERGED: "Raise labels.reference.max_steps, and look at the structures. Metals and small gaps need smearing, "
    "atoms far apart a spin: other smearing, spin or charge want a new campaign.",
    Cause.TIME_LIMIT: "Raise site.launch.time_limit (and the walltime and drain of the label jobs), or the ranks of a label.",
    Cause.OUT_OF_MEMORY: "Raise site.launch.memory_GB and the memory of the label jobs, or lower site.launch.ranks.",
    Cause.BAD_GEOMETRY: "Look at the structures: walkers may go too far (walkers.stop), or a structure file is wrong.",
    Cause.BAD_INPUT: "Mend labels.reference or its template, in a new campaign: the program's own words are above.",
    Cause.MISSING_FILE: "Put the file where labels.reference names it (template, basis_files, potential_files, "
    "pseudopotentials).",
    Cause.MISSING_PROGRAM: "Mend site.launch.programs, site.launch.mpi or site.launch.container, or load its module in "
    "worker_init.",
    Cause.CRASH: "Look at the end of its output: the program, its MPI library or its node may be broken.",
    Cause.BAD_OUTPUT: "Look at its output: another version of the program, or two programs that write into one file.",
    Cause.IMPLAUSIBLE: "Look at the structures and at labels.max_force_eV_per_A, labels.max_net_force_eV_per_A and "
    "labels.energy_window_eV_per_atom.",
    Cause.OTHER_LEVEL: "Restore what changed, or begin a new campaign: labels of two levels of theory are never mixed.",
    Cause.WORKER_LOST: "Look for memory that ran out or jobs that end too soon (walltime and drain of the label jobs).",
    Cause.UNKNOWN: "Look at the reason and at labels.reference.",
}
"""What a person must do about labels that fail for one cause again and again."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Labels fail for one cause, one after the other.

    Attributes:
        cause: the same of all.
        count: so many failed for it, of the newest ``window`` labels.
        example: the last of them.
    """

    cause: Cause
    count: int
    window: int
    example: LabelFailed


def systematic_fault(recent: Sequence[LabelFailed | None], recovery: RecoverySettings) -> Fault | None:
    """Why labelling must pause; None where it need not.

    It must when of the newest labels at least ``pause_after``, and more than the share ``pause_share``, failed for the same
    cause. The newest ones are the last ``pause_after / pause_share``, or as many as there are. Three labels are enough
    while there is no good one and the cause hits every structure, and one of another level of theory.

    Args:
        recent: labels that came since the campaign was taken up last, in their order: the failure, or None for a good one.
        recovery: the limits.
    """
    window = max(math.ceil(recovery.pause_after / recovery.pause_share), FIRST)
    newest = recent[-window:]
    failures = [failure for failure in newest if failure is not None]
    counts = Counter(failure.cause for failure in failures)
    for cause, count in counts.most_common():
        is_frequent = count >= recovery.pause_after and count > recovery.pause_share * len(newest)
        is_of_all = cause in OF_ALL and count >= FIRST and len(failures) == len(recent)
        if is_frequent or is_of_all or cause is Cause.OTHER_LEVEL:
            example = next(failure for failure in reversed(failures) if failure.cause is cause)
            return Fault(cause, count, len(newest), example)
    return None
