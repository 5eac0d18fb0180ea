"""The MIL-53(Al) template: its structure, its references, and what is said where tblite is missing."""

import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from ase.build import bulk

from apps.cli.init import copy_template
from pipeline.errors import StructureError
from pipeline.frames import Frame
from pipeline.initial import rattled_for
from pipeline.intake import Intake, open_campaign
from pipeline.plan import conditions_of
from pipeline.references import Calculation, build_reference
from pipeline.seeds import generator
from pipeline.settings import CampaignSettings

TEMPLATE = Path(__file__).parents[2] / "apps" / "templates" / "mil53-al"


@pytest.fixture(scope="module")
def intake() -> Intake:
    return open_campaign(TEMPLATE / "campaign.yaml")


def test_the_starts_are_the_large_pore_in_its_measured_and_in_its_relaxed_cell(intake: Intake) -> None:
    frames = intake.frames["mil53-al"]
    formulas = {frame.to_atoms().get_chemical_formula() for frame in frames}
    assert formulas == {"C32H20Al4O20"}  # four Al(OH)(C8H4O4)
    measured, relaxed = (float(np.linalg.det(frame.cell)) for frame in frames)
    assert measured == pytest.approx(1412.3, abs=0.1)
    assert relaxed == pytest.approx(1525.7, abs=0.1)
    low, high = intake.settings.systems[0].variables[0].range_A3
    assert low < 900 < relaxed < high


def test_every_batch_of_walkers_holds_every_condition(intake: Intake) -> None:
    walkers = intake.settings.walkers
    wanted = {(t, p) for t in (300.0, 600.0) for p in (0.0, 250.0, -250.0)}
    for item in range(walkers.count // walkers.batch):
        assert set(conditions_of(item, intake.settings)) == wanted


def test_the_campaign_with_cp2k_differs_in_name_reference_and_size_alone(intake: Intake) -> None:
    other = CampaignSettings.model_validate(yaml.safe_load((TEMPLATE / "cp2k.yaml").read_text()))
    ours = intake.settings
    assert other.labels.reference.kind == "cp2k"
    assert other.systems == ours.systems
    assert other.labels.initial_strain == ours.labels.initial_strain
    same = ("temperatures_K", "pressures_MPa", "barostat", "bias", "stop", "timestep_fs", "max_steps")
    assert {key: getattr(other.walkers, key) for key in same} == {key: getattr(ours.walkers, key) for key in same}


def test_without_tblite_the_remedy_is_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tblite", None)
    monkeypatch.setitem(sys.modules, "tblite.ase", None)
    copy_template("mil53-al", tmp_path / "new")
    with pytest.raises(StructureError, match=r"labels\.reference\.calculator: tblite\.ase\.TBLite") as caught:
        open_campaign(tmp_path / "new" / "campaign.yaml")
    assert "pip install 'farwalk[xtb]'" in str(caught.value)


def test_forces_and_stress_of_the_reference_are_slopes_of_its_energy(intake: Intake, tmp_path: Path) -> None:
    settings = intake.settings.labels.reference
    fine = settings.model_copy(update={"arguments": {**settings.arguments, "accuracy": 0.1}})
    labeler = build_reference(fine)
    calculation = Calculation(directory=tmp_path)
    small = Frame.from_atoms(bulk("AlN", "wurtzite", a=3.11, c=4.98), system="x")
    frame = rattled_for(intake.settings, small, generator(5))
    found = labeler.label(frame, calculation)
    assert found.stress is not None

    def energy(strain: np.ndarray, moves: np.ndarray) -> float:
        atoms = frame.to_atoms()
        atoms.positions += moves
        atoms.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
        return labeler.label(Frame.from_atoms(atoms, system="x"), calculation).energy

    nowhere, still = np.zeros((3, 3)), np.zeros((len(frame), 3))
    moves = 1e-3 * generator(6).normal(size=still.shape)
    slope = (energy(nowhere, moves) - energy(nowhere, -moves)) / 2
    assert slope == pytest.approx(-np.sum(found.forces * moves), rel=1e-3)
    strain = 5e-4 * np.array([[1.0, 0.5, 0.0], [0.5, 0.0, 0.3], [0.0, 0.3, -1.0]])
    voigt = np.array(
        [strain[0, 0], strain[1, 1], strain[2, 2], *(2 * strain[i, j] for i, j in ((1, 2), (0, 2), (0, 1)))]
    )
    slope = (energy(strain, still) - energy(-strain, still)) / 2
    assert slope == pytest.approx(abs(np.linalg.det(frame.cell)) * found.stress @ voigt, rel=1e-3)
