"""Charge, spin and elements of a DFT reference against those of the structures."""

from typing import Any

import pytest
from ase import Atoms
from ase.build import bulk, molecule

from pipeline.frames import Frame
from pipeline.references.composition import composition_problems
from pipeline.settings.dft import CP2KReference, QuantumEspressoReference


def problems(atoms: Atoms, **settings: Any) -> list[str]:
    cp2k = CP2KReference.model_validate({"preset": "pbe", **settings})
    return composition_problems(cp2k, {"one": (Frame.from_atoms(atoms, system="one"),)})


def only(atoms: Atoms, **settings: Any) -> str:
    (line,) = problems(atoms, **settings)
    return line


WATER, OXYGEN, HYDROXYL, NITRIC_OXIDE = (molecule(name) for name in ("H2O", "O2", "OH", "NO"))


@pytest.mark.parametrize(
    ("atoms", "settings"),
    [
        (WATER, {}),
        (WATER, {"charge": 2}),
        (OXYGEN, {"multiplicity": 3}),
        (HYDROXYL, {"multiplicity": 2}),
        (HYDROXYL, {"charge": -1}),
        (HYDROXYL, {"magnetization": {"O": 1.0}}),
        (bulk("Al"), {"smearing": {"width_eV": 0.1}}),
    ],
)
def test_electrons_that_can_have_the_spin_are_no_problem(atoms: Atoms, settings: dict[str, Any]) -> None:
    assert problems(atoms, **settings) == []


def test_an_odd_number_of_electrons_needs_a_multiplicity() -> None:
    line = only(NITRIC_OXIDE)
    assert "system one has 15 electrons at charge 0" in line
    assert "give multiplicity" in line


def test_a_multiplicity_of_the_wrong_parity_is_told_with_the_right_one() -> None:
    assert "multiplicity is 2 (even), but system one has 10 electrons at charge 0, which needs an odd one" in only(
        WATER, multiplicity=2
    )
    assert "needs an even one" in only(HYDROXYL, multiplicity=3)
    assert "lower it" in only(molecule("H2"), multiplicity=5)


def test_a_charge_beyond_all_electrons_is_refused() -> None:
    assert "labels.reference.charge: system one has 0 electrons" in only(molecule("H2"), charge=2)


def test_names_of_elements_that_no_structure_holds_are_refused() -> None:
    named = {"basis_of": {"h": "X"}, "potential_of": {"H": "GTH-PBE-q1", "Cu": "X"}, "magnetization": {"Fe": 2.0}}
    lines = problems(WATER, **named)
    keys = ("magnetization.Fe", "basis_of.h", "potential_of.Cu")
    assert [line.split(":")[0] for line in lines] == [f"labels.reference.{key}" for key in keys]
    assert "use one of H, O" in lines[0]
    espresso = QuantumEspressoReference(pseudopotentials="/pseudo", pseudopotential_of={"Si": "Si.UPF"})
    frames = {"one": (Frame.from_atoms(WATER, system="one"),)}
    assert "pseudopotential_of.Si: no structure holds Si" in composition_problems(espresso, frames)[0]


def test_charge_and_spin_of_a_template_are_not_known() -> None:
    template = CP2KReference(template="/some/input.inp")
    frames = {"one": (Frame.from_atoms(NITRIC_OXIDE, system="one"),)}
    assert composition_problems(template, frames) == []
