"""Why a calculation of pw.x gave no label, from its exit status and its own words."""

import re

from pipeline.records import Cause
from pipeline.references.base import CalculationFailed
from pipeline.references.espresso_pseudos import KEY
from pipeline.references.program import Ended, killing_signal

_ERROR = re.compile(
    r"(?:Error in routine|from) +(?P<routine>\S+) *(?:\(-?\d+\)|: *error *# *-?\d+):?[ \t]*\n(?P<text>[^%]*)"
)
_NOT_CONVERGED = re.compile(
    r"bands are not converged|S matrix not positive definite|problems computing cholesky|eigenvectors failed to converge"
    r"|diagonalization .*failed",
    re.IGNORECASE,
)
_MISSING = re.compile(r"\bnot found\b|no such file|file .* (?:does not exist|missing)", re.IGNORECASE)
_RANKS = re.compile(
    r"some nodes have no|too many (?:procs|processors|pools)|not enough (?:procs|planes)|no G-vectors|no planes", re.I
)
_FILE_ROUTINES = re.compile(
    r"davcio|read_scf|read_rho|read_paw|potinit|seqopn|diropn|fft_type|mp_|p?c?rdiaghg_info", re.I
)
_REMEDIES = (
    ("smearing is needed", f"Give {KEY}.smearing, or {KEY}.multiplicity where the number of electrons is odd."),
    ("fixed occupations and lsda", f"Give {KEY}.multiplicity or {KEY}.smearing."),
    ("conflicting values for igcx", f"Use pseudopotentials of one functional ({KEY}.pseudopotential_of)."),
    ("dft-d3", f"Set {KEY}.dispersion to none: this functional has no D3 parameters in pw.x."),
)


def failure(ended: Ended, crash: str) -> CalculationFailed | None:
    """What ended a calculation early; None where nothing says so.

    Args:
        ended: how the program ended.
        crash: content of the file ``CRASH`` that pw.x leaves when it stops itself; empty: there is none.
    """
    output = ended.output
    if "Maximum CPU time exceeded" in output:
        return CalculationFailed(
            Cause.TIME_LIMIT,
            "pw.x stopped before its time limit, with the SCF cycle not finished.",
            "Raise site.launch.time_limit, or give a label more ranks.",
        )
    if error := _ERROR.search(output) or _ERROR.search(crash):
        return _own_error(error["routine"], " ".join(error["text"].split()))
    if "convergence NOT achieved" in output:
        steps = re.search(r"convergence NOT achieved after +(\d+)", output)
        return CalculationFailed(
            Cause.NOT_CONVERGED,
            f"the SCF cycle of pw.x did not converge in {steps[1] if steps else 'its'} steps.",
            f"Raise {KEY}.max_steps, or give {KEY}.smearing.",
        )
    if signal := killing_signal(ended):
        return CalculationFailed(Cause.CRASH, f"pw.x, or a rank of it, died of {signal}.")
    if ended.code != 0:
        return CalculationFailed(Cause.CRASH, f"pw.x ended with status {ended.code}: {_last_line(output)}")
    if "JOB DONE." not in output:
        return CalculationFailed(Cause.CRASH, f"pw.x ended without 'JOB DONE.': {_last_line(output)}")
    return None


def _own_error(routine: str, text: str) -> CalculationFailed:
    """What pw.x says in its box of percent signs."""
    reason = f"pw.x stopped in {routine}: {text[:300].rstrip('.!')}."
    if _NOT_CONVERGED.search(text):
        return CalculationFailed(Cause.NOT_CONVERGED, reason, f"Raise {KEY}.cutoff_Ry, or give {KEY}.smearing.")
    if "overlap" in text and "atoms" in text:
        return CalculationFailed(Cause.BAD_GEOMETRY, reason)
    if _RANKS.search(text):
        return CalculationFailed(Cause.CRASH, reason, "Lower site.launch.ranks.")
    if _FILE_ROUTINES.search(routine):
        return CalculationFailed(Cause.CRASH, reason)
    if _MISSING.search(text):
        return CalculationFailed(Cause.MISSING_FILE, reason, f"Correct {KEY}.pseudopotentials.")
    remedy = next((remedy for words, remedy in _REMEDIES if words in text), f"Correct {KEY}.")
    return CalculationFailed(Cause.BAD_INPUT, reason, remedy)


def _last_line(output: str) -> str:
    """The last words of pw.x, before those of OpenMPI about it."""
    words = output.partition("MPI_ABORT was invoked")[0].splitlines()
    lines = [line.strip() for line in words if any(character.isalpha() for character in line)]
    return lines[-1][:200] if lines else "it printed nothing"
