"""pw.x of Quantum ESPRESSO as a reference."""

import contextlib
import hashlib
import shutil
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from ase.data import atomic_numbers, chemical_symbols

from pipeline.frames import Frame
from pipeline.records import Cause, Measure
from pipeline.references.base import Calculation, CalculationFailed, Labeler, Properties
from pipeline.references.espresso_failure import failure
from pipeline.references.espresso_input import PREFIX, Sent, base_input, frame_input, gives_stress
from pipeline.references.espresso_measures import (
    DENSITIES,
    MEASURES,
    RESTART_FILES,
    SAVE,
    SCHEMA,
    density_fits,
    from_density,
    loses_moments,
    pools,
    smeared_start,
    with_measures,
)
from pipeline.references.espresso_output import read_properties
from pipeline.references.espresso_text import PwInput
from pipeline.references.program import run_program
from pipeline.settings.dft import QuantumEspressoReference

NAME = "pw"
"""Of input and output files: ``pw.in``, ``pw.out``, and ``pw-start.*`` of a preparation."""
RULES = 1
"""Of the input made from settings: raise it when the same settings mean other physics."""
NOT_PHYSICS = {
    "max_steps",
    "guess",
    "charges",
    "magnetic_moments",
    "pseudopotentials",
    "pseudopotential_of",
    "template",
}
_BULKY = (
    f"{PREFIX}.wfc*",
    f"{PREFIX}.mix*",
    f"{PREFIX}.hub*",
    f"{SAVE}/wfc*",
    f"{SAVE}/*.upf",
    f"{SAVE}/*.UPF",
    f"{SAVE}/*.gth",
)
"""Wave functions and copies of pseudopotentials: nothing reads them again."""


class QuantumEspressoLabeler(Labeler):
    """pw.x.

    Args:
        settings: level of theory.

    Raises:
        SettingsError: the template, the pseudopotentials or the cutoffs are missing or wrong.
    """

    measures = MEASURES
    restart_files = RESTART_FILES

    def __init__(self, settings: QuantumEspressoReference) -> None:
        self._settings = settings
        self._base, self._family = base_input(settings)

    @property
    def provides_stress(self) -> bool:
        """Where the structure is periodic in three directions; not with GTH pseudopotentials, nor with assume_isolated."""
        return gives_stress(self._base, self._family)

    def label(self, frame: Frame, calculation: Calculation) -> Properties:
        """Compute one structure; energy with smearing is the free energy. pw.x has no atomic charges.

        A smeared start is a fresh start where spins are apart and the total moment is free, see
        :func:`espresso_measures.loses_moments`.

        Raises:
            CalculationFailed: there is no label; says why.
        """
        planned, sent = frame_input(self._base, self._settings, self._family, frame)
        ends = time.monotonic() + calculation.time_s
        made = with_measures(planned, calculation.measures, time_s=calculation.time_s)
        try:
            if _take_density(calculation, sent):
                made = from_density(made)
            elif Measure.SMEARED_START in calculation.measures and not loses_moments(planned):
                _run(smeared_start(made), f"{NAME}-start", calculation)
                left = max(1.0, ends - time.monotonic())
                calculation = replace(calculation, time_s=left)
                made = from_density(with_measures(planned, calculation.measures, time_s=left))
            output = _run(made, NAME, calculation)
            schema = _schema(calculation.directory)
            return read_properties(output, schema, sent, moments=self._settings.magnetic_moments)
        finally:
            _remove_bulky(calculation.directory)


def espresso_facts(settings: QuantumEspressoReference) -> dict[str, object]:
    """What the level of theory depends on: settings, cutoffs, contents of the pseudopotentials and of the template.

    Raises:
        SettingsError: as for the labeler.
    """
    _, family = base_input(settings)
    facts: dict[str, object] = settings.model_dump(mode="json", exclude=NOT_PHYSICS)
    facts["rules"] = RULES
    facts["pseudopotentials"] = {element: member.sha256 for element, member in sorted(family.members.items())}
    if settings.template is None:
        facts["cutoff_Ry"], facts["density_cutoff_Ry"] = family.cutoffs_Ry(settings)
    else:
        facts["template"] = hashlib.sha256(Path(settings.template).read_bytes()).hexdigest()
    return facts


def espresso_numbers(settings: QuantumEspressoReference) -> frozenset[int]:
    """Atomic numbers of the elements that have a pseudopotential.

    Raises:
        SettingsError: as for the labeler.
    """
    _, family = base_input(settings)
    return frozenset(atomic_numbers[element] for element in family.elements)


def check_pseudopotentials(settings: QuantumEspressoReference, numbers: Collection[int]) -> None:
    """Refuse elements for which the settings do not choose between several pseudopotentials.

    Args:
        settings: level of theory.
        numbers: atomic numbers; those without any pseudopotential are none of this check's business.

    Raises:
        SettingsError: names the files.
    """
    _, family = base_input(settings)
    family.choose({chemical_symbols[number] for number in numbers} & family.elements)


def _run(made: PwInput, name: str, calculation: Calculation) -> str:
    """Run pw.x to its end.

    Returns:
        All that it printed.

    Raises:
        CalculationFailed: it did not converge, or did not get to its end.
    """
    directory = calculation.directory
    (directory / f"{name}.in").write_text(made.to_text(), encoding="utf-8")
    arguments = ["-in", f"{name}.in"]
    if (number := pools(made, calculation.measures, calculation.ranks)) > 1:
        arguments += ["-nk", str(number)]
    ended = run_program(calculation.launch.programs.pw, arguments, calculation, output=f"{name}.out")
    crash = directory / "CRASH"
    words = crash.read_text(encoding="utf-8", errors="replace") if crash.is_file() else ""
    if failed := failure(ended, words):
        raise failed
    return (directory / f"{name}.out").read_text(encoding="utf-8", errors="replace")


def _schema(directory: Path) -> bytes:
    try:
        return (directory / SCHEMA).read_bytes()
    except FileNotFoundError:
        raise CalculationFailed(Cause.BAD_OUTPUT, f"pw.x says it is done, but wrote no {SCHEMA}.") from None


def _take_density(calculation: Calculation, sent: Sent) -> bool:
    """Copy the density to start from, if there is one that fits, and only that: no result of another calculation."""
    for source in (calculation.previous, calculation.guess):
        if source is not None and density_fits(source, sent):
            save = calculation.directory / SAVE
            save.mkdir(exist_ok=True)
            for name in (*DENSITIES, "paw.txt", "occup.txt"):
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(source / SAVE / name, save / name)
            return True
    return False


def _remove_bulky(directory: Path) -> None:
    for pattern in _BULKY:
        for path in directory.glob(pattern):
            path.unlink(missing_ok=True)
