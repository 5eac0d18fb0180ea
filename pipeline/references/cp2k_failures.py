"""Why a run of CP2K gave no label, in its own words."""

import re

from pipeline.records import Cause
from pipeline.references.base import CalculationFailed

_DRAWING = re.compile(r"^ \*(?:  \\___/|    \||  O/\||( /\| \|)|( / \\))?")
"""The little person beside the text of an [ABORT]."""
_NOT_THERE = re.compile(r"does not exist|was not found|cannot be opened|not found in the|No such file", re.IGNORECASE)
_NOT_DONE = re.compile(r"not \(?yet\)? (?:supported|implemented)|not tested for", re.IGNORECASE)
"""What CP2K says, late too, of combinations that it does not have: another try would only come to the same."""


def find_failure(output: str, code: int, died_of: str) -> CalculationFailed | None:
    """Why a calculation that ran gave no label, as far as CP2K says so; None where it ended well.

    Args:
        output: all that it printed.
        code: exit status.
        died_of: the signal that killed it; empty: none.
    """
    # exit status 0 until 2023, an abort later on
    if re.search(r"SCF run NOT converged|outer SCF loop FAILED to converge", output):
        steps = re.findall(r"Leaving inner SCF loop after reaching +(\d+) steps", output)
        return CalculationFailed(
            Cause.NOT_CONVERGED,
            f"the SCF cycle of CP2K did not converge in {sum(map(int, steps)) or 'all its'} steps.",
            "Raise labels.reference.max_steps (MAX_SCF of a template), or think about spin, charge and smearing.",
        )
    if (text := abort_text(output)) is not None:
        if _NOT_THERE.search(text):
            return CalculationFailed(
                Cause.MISSING_FILE,
                f"CP2K: {text}",
                "Correct basis, potential and their files in labels.reference (or its template), or set CP2K_DATA_DIR in "
                "site.launch.environment.",
            )
        if "SCF WAVEFUNCTION OPTIMIZATION" in output and not _NOT_DONE.search(text):
            return CalculationFailed(Cause.CRASH, f"CP2K stopped in the midst of its work: {text}")
        return CalculationFailed(Cause.BAD_INPUT, f"CP2K refused its input: {text}", "Correct labels.reference.")
    if code != 0 or "PROGRAM ENDED AT" not in output:
        how = died_of or f"exit status {code}"
        last = next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "nothing")
        return CalculationFailed(Cause.CRASH, f"CP2K died ({how}); the end of its output: {last[:200]}")
    return None


def abort_text(output: str) -> str | None:
    """What stands in CP2K's [ABORT] box, as one line; None without one."""
    lines = output.splitlines()
    start = next((i for i, line in enumerate(lines) if "[ABORT]" in line), None)
    if start is None:
        return None
    said = []
    for line in lines[start + 1 : start + 15]:
        if line.strip().startswith("****"):
            break
        said.append(_DRAWING.sub("", line).rstrip(" *").strip())
    if said:
        said.pop()  # place in the source
    return " ".join(" ".join(said).split()) or "no reason given"
