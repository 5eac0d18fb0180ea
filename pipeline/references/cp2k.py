"""CP2K as a reference."""

import shutil
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

from ase.data import atomic_numbers

from pipeline.errors import MissingFileError
from pipeline.frames import Frame
from pipeline.records import Cause, Measure
from pipeline.references.base import Calculation, CalculationFailed, Labeler, Properties
from pipeline.references.cp2k_failures import find_failure
from pipeline.references.cp2k_geometry import Geometry, place
from pipeline.references.cp2k_input import (
    INTERFACE,
    PROJECT,
    RECIPE,
    ask_for,
    insert_structure,
    preset,
)
from pipeline.references.cp2k_output import Wanted, read_properties
from pipeline.references.cp2k_scf import smear_widely, start_from, take_measures
from pipeline.references.cp2k_template import (
    content_digest,
    kinds_of,
    own_files,
    place_in,
    read_template,
    reference_text,
    with_names,
)
from pipeline.references.cp2k_tree import Section
from pipeline.references.program import killing_signal, run_program
from pipeline.settings.dft import CP2KReference

SMEARED = "smeared"
"""Name of the first half of a SMEARED_START."""
ORBITALS = "RESTART.wfn"
DENSITY = "RESTART.kp"
"""With k-points."""


class CP2KLabeler(Labeler):
    """CP2K, Quickstep: energy (free energy with smearing), forces, stress, Mulliken charges and moments.

    Everything happens in the calculation's directory: ``label.inp``, ``label.out``, files of the user's, a wave function to
    start from; nothing there lies elsewhere, so that a container sees it too.

    SMEARED_START is a start from the atoms alone, with the other measures, where a smeared half could lose the magnetic order:
    spins are apart, and their total moment is zero or unknown, or cannot be held at the starting one (k-points).

    Args:
        settings: level of theory.

    Raises:
        SettingsError: the template or a file of the user's cannot be used.
    """

    measures = frozenset(Measure)
    restart_files = (f"{PROJECT}-{ORBITALS}", f"{PROJECT}-{DENSITY}")

    def __init__(self, settings: CP2KReference) -> None:
        self._settings = settings
        self._template = None if settings.template is None else read_template(Path(settings.template))
        require_files(settings)

    @property
    def provides_stress(self) -> bool:
        """Always, where the structure is periodic in three directions."""
        return True

    def label(self, frame: Frame, calculation: Calculation) -> Properties:
        """Compute one structure.

        Raises:
            CalculationFailed: there is no label.
        """
        tree, geometry = self.structure_input(frame)
        self._bring_files(tree, calculation.directory)
        dft = tree.at("FORCE_EVAL", "DFT")
        take_measures(dft, calculation.measures)
        start = self._bring_start(calculation)
        spent_s = 0.0
        if Measure.SMEARED_START in calculation.measures and start is None:
            start, spent_s = self._smeared_start(tree, calculation)
        if start is not None:
            start_from(dft, start)
        wanted = Wanted(
            geometry=geometry,
            stress=bool(frame.pbc.all()),
            charges=self._settings.charges,
            magnetic_moments=self._settings.magnetic_moments,
        )
        ask_for(tree, forces=True, stress=wanted.stress, populations=wanted.charges or wanted.magnetic_moments)
        left = replace(calculation, time_s=max(1.0, calculation.time_s - spent_s))
        output, failure, _ = run_cp2k(tree, left, PROJECT)
        if failure is not None:
            raise _of_start(failure) if start else failure
        second = calculation.directory / INTERFACE
        return read_properties(output, read_text(second), wanted)

    def structure_input(self, frame: Frame) -> tuple[Section, Geometry]:
        """The structure in a preset or in the template, as the settings say, and where it lies.

        Raises:
            CalculationFailed: BAD_INPUT or BAD_GEOMETRY: there is no such input.
        """
        if self._template is None:
            geometry = place(frame)
            tree = preset(self._settings, geometry, electrons=int(frame.numbers.sum()))
        else:
            tree = deepcopy(self._template)
            geometry = place_in(tree, frame)
        insert_structure(tree, geometry, template=self._template is not None)
        return tree, geometry

    def _bring_files(self, tree: Section, directory: Path) -> None:
        """Copies of the user's files beside the input, and their names in it."""
        names = {}
        for number, (value, path) in enumerate(sorted(own_files(tree, self._base).items())):
            names[value] = f"own-{number}{path.suffix}"
            shutil.copyfile(path, directory / names[value])
        with_names(tree, names)

    @property
    def _base(self) -> Path | None:
        """Where files that a template names are looked for."""
        return Path(self._settings.template).parent if self._settings.template else None

    def _bring_start(self, calculation: Calculation) -> str | None:
        """A copy of the wave function to start from, of the try before or of a nearby structure; its name."""
        wanted = None if Measure.FRESH_START in calculation.measures else calculation.guess
        for source in (calculation.previous, wanted):
            for name in self.restart_files:
                if source is not None and (source / name).is_file():
                    start = f"start{Path(name).suffix}"
                    shutil.copyfile(source / name, calculation.directory / start)
                    return start
        return None

    def _smeared_start(self, tree: Section, calculation: Calculation) -> tuple[str | None, float]:
        """The wave function (or density) of the structure with wide smearing, converged or not, and its seconds.

        None where such a start could lose the magnetic order.

        Raises:
            CalculationFailed: it did not even begin.
        """
        wide = deepcopy(tree)
        if not smear_widely(wide.at("FORCE_EVAL", "DFT")):
            return None, 0.0
        ask_for(wide, forces=False, stress=False, populations=False, project=SMEARED)
        _, failure, wall_s = run_cp2k(wide, calculation, SMEARED)
        if failure is not None and failure.cause is not Cause.NOT_CONVERGED:
            raise failure
        written = (f"{SMEARED}-{ORBITALS}", f"{SMEARED}-{DENSITY}")
        return next((name for name in written if (calculation.directory / name).is_file()), None), wall_s


def run_cp2k(tree: Section, calculation: Calculation, name: str) -> tuple[str, CalculationFailed | None, float]:
    """Run an input; its whole output, why it failed (None: it did not), and its seconds.

    Raises:
        CalculationFailed: TIME_LIMIT, OUT_OF_MEMORY or MISSING_PROGRAM.
    """
    directory = calculation.directory
    (directory / f"{name}.inp").write_text(tree.text(), encoding="utf-8")
    program = calculation.launch.programs.cp2k
    ended = run_program(program, ["-i", f"{name}.inp"], calculation, output=f"{name}.out")
    output = read_text(directory / f"{name}.out")
    return output, find_failure(output, ended.code, killing_signal(ended)), ended.wall_s


def read_text(path: Path) -> str:
    """A file, whatever bytes it holds; nothing where there is none."""
    return path.read_bytes().decode("utf-8", errors="replace") if path.is_file() else ""


def require_files(settings: CP2KReference) -> None:
    """Refuse settings that name files by path which are not there; CP2K has its own by name.

    Raises:
        SettingsError: one is missing.
    """
    for key, names in (("basis_files", settings.basis_files), ("potential_files", settings.potential_files)):
        for name in names:
            if "/" in name and not Path(name).is_file():
                raise MissingFileError(
                    f"labels.reference.{key}: {name}: there is no such file.",
                    f"Correct labels.reference.{key}: files of yours by path, CP2K's own by name.",
                )


def cp2k_problems(settings: CP2KReference, frames: Mapping[str, Sequence[Frame]]) -> list[str]:
    """One line per system with a structure of which no input can be made.

    Raises:
        SettingsError: the template or a file of the user's cannot be used.
    """
    labeler = CP2KLabeler(settings)
    problems: dict[str, str] = {}
    for name, group in frames.items():
        for frame in group:
            try:
                labeler.structure_input(frame)
            except CalculationFailed as failed:
                problems.setdefault(name, f"labels.reference: system {name}: {failed}")
    return list(problems.values())


def cp2k_numbers(settings: CP2KReference) -> frozenset[int] | None:
    """Atomic numbers that a template describes; None: presets leave that to CP2K's basis sets.

    Raises:
        SettingsError: the template cannot be used.
    """
    if settings.template is None:
        return None
    known = kinds_of(read_template(Path(settings.template)))
    return None if known is None else frozenset(atomic_numbers[symbol] for symbol in known if symbol in atomic_numbers)


def cp2k_facts(settings: CP2KReference) -> dict[str, object]:
    """What the level of theory depends on: settings and contents of files; of CP2K's own files, their names.

    Raises:
        SettingsError: a file cannot be read.
    """
    if settings.template is None:
        no_physics = {"max_steps", "guess", "charges", "magnetic_moments", "solver", "template"}
        facts = settings.model_dump(mode="json", exclude=no_physics)
        for key in ("basis_files", "potential_files"):
            facts[key] = [content_digest(Path(name)) if "/" in name else name for name in facts[key]]
        return facts | {"recipe": RECIPE}
    path = Path(settings.template)
    tree = read_template(path)
    files = own_files(tree, path.parent)
    with_names(tree, {value: content_digest(file) for value, file in files.items()})
    return {"kind": settings.kind, "template": reference_text(tree)}


def _of_start(failure: CalculationFailed) -> CalculationFailed:
    """CP2K refuses a wave function of other atoms as it refuses an input; without it the label may succeed."""
    if failure.cause is Cause.BAD_INPUT:
        return CalculationFailed(Cause.CRASH, failure.reason, failure.remedy)
    return failure
