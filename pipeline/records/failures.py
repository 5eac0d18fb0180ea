"""Why a label failed, what was tried, and what is tried next."""

from dataclasses import dataclass
from enum import StrEnum


class Cause(StrEnum):
    """Why a reference calculation gave no label."""

    NOT_CONVERGED = "not_converged"
    """The SCF cycle did not converge."""
    TIME_LIMIT = "time_limit"
    """It took longer than its time limit."""
    OUT_OF_MEMORY = "out_of_memory"
    BAD_GEOMETRY = "bad_geometry"
    """We refused the structure: another composition, periodicity or elements than the reference takes, atoms too close."""
    BAD_INPUT = "bad_input"
    """The program refused its input."""
    MISSING_FILE = "missing_file"
    """A pseudopotential, basis set or other file of the reference is not there."""
    MISSING_PROGRAM = "missing_program"
    """The program, its MPI launcher or its container cannot be started."""
    CRASH = "crash"
    """The program, or a rank of it, died."""
    BAD_OUTPUT = "bad_output"
    """The program says it is done, but its output is torn, contradicts itself or is of another structure."""
    IMPLAUSIBLE = "implausible"
    """The numbers are finite but no label: net force, too large a force, energy out of the window."""
    OTHER_LEVEL = "other_level"
    """It is of another level of theory than the labels before: another digest of the reference."""
    WORKER_LOST = "worker_lost"
    """The worker or its job died each time."""
    UNKNOWN = "unknown"
    """An exception of the reference that says nothing of the kind."""


class Measure(StrEnum):
    """What a try does differently from the settings. None of them changes the level of theory of the label."""

    FRESH_START = "fresh_start"
    """No restart guess, in an empty directory."""
    MORE_STEPS = "more_steps"
    """More SCF steps, from where the try before ended."""
    GENTLE_MIXING = "gentle_mixing"
    """Smaller, longer-remembered steps from one density to the next."""
    OTHER_SOLVER = "other_solver"
    """Another minimiser or diagonaliser."""
    SMEARED_START = "smeared_start"
    """First converged with wide smearing, then from that density with the settings' own occupations; a fresh start in pw.x
    where wide smearing could lose a magnetic moment that is free."""
    MORE_TIME = "more_time"
    """Twice the time, from where the try before ended."""
    MORE_MEMORY = "more_memory"
    """Twice the memory per rank."""
    FEWER_RANKS = "fewer_ranks"
    """Half of the ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """One failed try of a label.

    Attributes:
        cause, reason: why it failed.
        measures: what it did differently from the settings.
        wall_s: its duration; core_s: duration × cores it held.
        directory: its files, relative to the scratch directory of the task.
        final: no measure changes it: the label is not tried again.
    """

    cause: Cause
    reason: str
    measures: tuple[Measure, ...]
    wall_s: float
    core_s: float
    directory: str
    final: bool = False
