"""Any ASE calculator as a reference; EMT is one of them."""

import importlib
from typing import Any

import numpy as np
from ase.calculators.abc import GetPropertiesMixin
from ase.calculators.calculator import BaseCalculator, CalculatorSetupError, get_calculator_class
from ase.calculators.emt import EMT
from ase.calculators.emt import parameters as emt_parameters
from ase.data import chemical_symbols

from pipeline.errors import MissingFileError, SettingsError, TaskError
from pipeline.frames import Frame
from pipeline.references.base import Calculation, Labeler, Properties
from pipeline.settings.labels import ASEReference

EXTRAS = {"tblite": "farwalk[xtb]"}
"""Packages of calculators that farwalk installs as an extra."""


class CalculatorLabeler(Labeler):
    """A reference made of an ASE calculator class.

    A new calculator is made for every structure unless ``reuse``: neighbour lists and wave functions left from the
    structure before would change the last digits.

    Args:
        kind: the calculator class.
        arguments: its keyword arguments.
        reuse: keep one calculator for all structures.
    """

    def __init__(self, kind: type[Any], arguments: dict[str, Any], *, reuse: bool = False) -> None:
        self._kind = kind
        self._arguments = dict(arguments)
        first = make_calculator(kind, self._arguments)  # wrong arguments are found now
        self._kept = first if reuse else None

    @property
    def provides_stress(self) -> bool:
        """Whether the calculator's class says so."""
        return "stress" in self._kind.implemented_properties

    def label(self, frame: Frame, calculation: Calculation) -> Properties:
        """Energy (the free energy where the calculator has one: forces derive from it), forces and stress.

        Raises:
            SettingsError: the calculator does not take its arguments.
        """
        calculator = self._kept if self._kept is not None else make_calculator(self._kind, self._arguments)
        if isinstance(calculator, BaseCalculator):
            calculator.directory = str(calculation.directory)
        atoms = frame.to_atoms()
        known = calculator.implemented_properties
        forces = np.array(calculator.get_property("forces", atoms), dtype=np.float64)
        energy = float(calculator.get_property("free_energy" if "free_energy" in known else "energy", atoms))
        with_stress = self.provides_stress and bool(frame.pbc.all())
        stress = np.array(calculator.get_property("stress", atoms), dtype=np.float64) if with_stress else None
        return Properties(energy=energy, forces=forces, stress=stress)


class EMTLabeler(CalculatorLabeler):
    """ASE's effective-medium theory."""

    def __init__(self) -> None:
        super().__init__(EMT, {})

    def label(self, frame: Frame, calculation: Calculation) -> Properties:
        """The same, after a look at the elements.

        Raises:
            TaskError: an element EMT has no parameters for.
        """
        if unknown := {chemical_symbols[z] for z in frame.numbers} - set(emt_parameters):
            raise TaskError(
                f"EMT has no parameters for {', '.join(sorted(unknown))}.", "Use another labels.reference.kind."
            )
        return super().label(frame, calculation)


def find_calculator(name: str) -> type[Any]:
    """The calculator class of an ASE name or an import path; imports its module and runs nothing else.

    Raises:
        SettingsError: it cannot be imported, or is not a calculator class.
    """
    module, _, attribute = name.rpartition(".")
    where = f"labels.reference.calculator: {name}"
    try:
        found: Any = getattr(importlib.import_module(module), attribute) if module else get_calculator_class(name)
    except (ImportError, AttributeError, ValueError) as error:
        package = EXTRAS.get(module.partition(".")[0]) if isinstance(error, ImportError) else None
        install = f"Install it: pip install '{package}'" if package else "Install its package"
        raise MissingFileError(
            f"{where}: cannot be imported ({error}).", f"{install}, or correct labels.reference.calculator."
        ) from None
    if not (isinstance(found, type) and issubclass(found, GetPropertiesMixin)):
        raise SettingsError(
            f"{where}: is a {type(found).__name__}, not an ASE calculator class.",
            "Name the class in labels.reference.calculator, e.g. tblite.ase.TBLite.",
        )
    return found


def make_calculator(kind: type[Any], arguments: dict[str, Any]) -> GetPropertiesMixin:
    """A calculator with its keyword arguments.

    Raises:
        SettingsError: the class does not take these arguments.
    """
    try:
        return kind(**arguments)
    except (TypeError, ValueError, KeyError, CalculatorSetupError) as error:
        raise SettingsError(
            f"labels.reference.arguments: {kind.__name__} refuses {arguments}: {type(error).__name__}: {error}.",
            "Correct labels.reference.arguments.",
        ) from error


def calculator_labeler(settings: ASEReference) -> CalculatorLabeler:
    """The labeler of ``kind: ase``.

    Raises:
        SettingsError: see :func:`find_calculator` and :func:`make_calculator`.
    """
    return CalculatorLabeler(find_calculator(settings.calculator), settings.arguments, reuse=settings.reuse)
