"""Whether the program of a reference starts where labels are made, and which one it is."""

import re
from dataclasses import dataclass, replace

from pipeline.records import Cause
from pipeline.references.base import Calculation, CalculationFailed
from pipeline.references.program import Ended, run_program
from pipeline.settings.dft import CP2KReference, QuantumEspressoReference

TIME_S = 60.0
"""How long a program may take to tell its version, seconds: libraries from a slow disk."""
OUTPUT = "version.out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A program that started.

    Attributes:
        program: name and version, e.g. ``CP2K 2023.1``.
        ranks: it was started with; wall_s: how long that took.
    """

    program: str
    ranks: int
    wall_s: float


def start_program(reference: CP2KReference | QuantumEspressoReference, calculation: Calculation) -> Started:
    """Start the program as a label would, without anything to compute.

    Args:
        reference: whose program.
        calculation: how and where; its time limit does not count.

    Raises:
        CalculationFailed: it does not start, or its ranks do not find each other.
    """
    programs = calculation.launch.programs
    match reference:
        case CP2KReference():
            key, program, arguments, name = "cp2k", programs.cp2k, ["--version"], "CP2K"
            banner = re.compile(r"^\s*CP2K version (\S+)", re.MULTILINE)
        case QuantumEspressoReference():
            # without input it says who it is, and ends with an error
            key, program, arguments, name = "pw", programs.pw, [], "Quantum ESPRESSO"
            banner = re.compile(r"^\s*Program PWSCF v\.(\S+) starts", re.MULTILINE)
    try:
        ended = run_program(program, arguments, replace(calculation, time_s=TIME_S), output=OUTPUT)
    except CalculationFailed as failed:
        if failed.cause is not Cause.TIME_LIMIT:
            raise
        raise CalculationFailed(
            Cause.TIME_LIMIT,
            f"{program} does not start within {TIME_S:g} s.",
            "site.launch.mpi may wait for cores that the worker holds (srun: --exact --overlap), or "
            f"site.launch.programs.{key} may be another program.",
        ) from failed
    found = banner.findall(ended.output)
    if not found:
        raise CalculationFailed(
            Cause.MISSING_PROGRAM,
            f"{program} says nothing that {name} says: {_last_words(ended)}.",
            f"Correct site.launch.programs.{key}, site.launch.mpi or site.launch.container, or load the program in the "
            "site's worker_init.",
        )
    if len(found) > 1:
        raise CalculationFailed(
            Cause.MISSING_PROGRAM,
            f"{calculation.ranks} ranks of {program} became {len(found)} programs that know nothing of each other.",
            "site.launch.mpi is of another MPI than the program: take the mpirun it was built with, or srun with the right "
            "--mpi.",
        )
    return Started(program=f"{name} {found[0]}", ranks=calculation.ranks, wall_s=ended.wall_s)


def _last_words(ended: Ended) -> str:
    """The last line of the output that says something, with the exit status."""
    lines = [" ".join(line.split()) for line in ended.output.splitlines() if re.search(r"\w", line)]
    said = f"its last line is {lines[-1][:200]!r}" if lines else "it wrote nothing"
    return f"{said}, exit status {ended.code}"
