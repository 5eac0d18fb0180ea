"""A held-out set: frames of the reference's own molecular dynamics, which a campaign never sees.

Several independent Langevin runs at one temperature, a frame every so often, started from rattled start structures.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openmm
from ase import Atoms
from ase import units as ase_units
from ase.md.langevin import Langevin

from pipeline.errors import TaskError
from pipeline.frames import FloatArray, Frame
from pipeline.records import FileRef, Label, Split
from pipeline.references import Calculation, build_reference, reference_digest
from pipeline.references.ase_calculator import find_calculator, make_calculator
from pipeline.references.openmm import PLATFORM, make_system, read_topology
from pipeline.seeds import Stream, generator, seed_for
from pipeline.settings.dft import CP2KReference, QuantumEspressoReference
from pipeline.settings.labels import ASEReference, EMTReference, OpenMMReference, Reference
from pipeline.shards import read_labels, write_labels
from pipeline.units import FEMTOSECOND, NANOMETRE


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a held-out set is drawn.

    Attributes:
        temperature_K: of the dynamics.
        frames: in all.
        runs: independent runs they come from.
        spacing_ps: time between frames of one run.
        equilibration_ps: time before the first frame of a run.
        timestep_fs, friction_per_ps: of the Langevin integrator.
        seed: of all random numbers.
    """

    temperature_K: float = 600.0
    frames: int = 200
    runs: int = 8
    spacing_ps: float = 0.5
    equilibration_ps: float = 2.0
    timestep_fs: float = 1.0
    friction_per_ps: float = 5.0
    seed: int = 0

    def steps(self, time_ps: float) -> int:
        """MD steps in a time."""
        return max(1, round(time_ps * 1000.0 / self.timestep_fs))

    def of_run(self, run: int) -> int:
        """Frames of one run."""
        return len(range(run, self.frames, self.runs))


def held_out_set(reference: Reference, starts: Sequence[Frame], sampling: Sampling, path: Path) -> list[Label]:
    """The held-out labels kept in ``path``, made when the file is not there.

    Args:
        reference: the method that moves and labels.
        starts: structures the runs start from, in turn.
        sampling: how it is drawn.
        path: an HDF5 shard beside which its digest is kept.

    Raises:
        StoreError: the file changed.
        SettingsError: the reference cannot be built.
    """
    note = path.with_name(f"{path.name}.sha256")
    if path.is_file() and note.is_file():
        return read_labels(FileRef(path=str(path), sha256=note.read_text(encoding="utf-8").strip()))
    labels = draw(reference, starts, sampling)
    path.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(write_labels(path, labels).sha256, encoding="utf-8")
    return labels


def draw(reference: Reference, starts: Sequence[Frame], sampling: Sampling) -> list[Label]:
    """Run the dynamics and label what they visit."""
    labeler, digest = build_reference(reference), reference_digest(reference)
    labels = []
    for run in range(sampling.runs):
        start = starts[run % len(starts)]
        for positions in trajectory(reference, start, sampling, run):
            frame = Frame(
                numbers=start.numbers, positions=positions, cell=start.cell, pbc=start.pbc, system=start.system
            )
            found = labeler.label(frame, Calculation(directory=Path()))
            labels.append(
                Label(
                    frame=frame,
                    energy=found.energy,
                    forces=found.forces,
                    stress=found.stress,
                    split=Split.VALIDATION,
                    round=0,
                    reference=digest,
                )
            )
    return labels


def trajectory(reference: Reference, start: Frame, sampling: Sampling, run: int) -> Iterator[FloatArray]:
    """(N, 3) positions of the frames of one run, Å."""
    seed = seed_for(sampling.seed, Stream.HELD_OUT, 0, run)
    match reference:
        case OpenMMReference():
            return _openmm_run(reference, start, sampling, seed, sampling.of_run(run))
        case EMTReference():
            return _ase_run(ASEReference(calculator="emt"), start, sampling, seed, sampling.of_run(run))
        case ASEReference():
            return _ase_run(reference, start, sampling, seed, sampling.of_run(run))
        case CP2KReference() | QuantumEspressoReference():
            raise TaskError(
                f"Dynamics with {reference.kind} cost a calculation per step.", "Give held-out frames as a file."
            )


def _openmm_run(
    reference: OpenMMReference, start: Frame, sampling: Sampling, seed: int, count: int
) -> Iterator[FloatArray]:
    """OpenMM's own Langevin integrator: ten times faster than a Python loop over single points."""
    integrator = openmm.LangevinMiddleIntegrator(
        sampling.temperature_K, sampling.friction_per_ps, sampling.timestep_fs / 1000.0
    )
    integrator.setRandomNumberSeed(1 + seed % (2**31 - 2))  # 0 would mean: from the clock
    system = make_system(reference, read_topology(reference))
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(PLATFORM))
    context.setPositions(start.positions / NANOMETRE)
    context.setVelocitiesToTemperature(sampling.temperature_K, 1 + (seed // 7) % (2**31 - 2))
    integrator.step(sampling.steps(sampling.equilibration_ps))
    for _ in range(count):
        integrator.step(sampling.steps(sampling.spacing_ps))
        positions = context.getState(getPositions=True).getPositions(asNumpy=True)
        values: FloatArray = np.array(positions.value_in_unit(openmm.unit.angstrom), dtype=np.float64)
        if not np.isfinite(values).all():
            raise TaskError("The reference's dynamics exploded.", "Use a smaller time step or temperature.")
        yield values


def _ase_run(reference: ASEReference, start: Frame, sampling: Sampling, seed: int, count: int) -> Iterator[FloatArray]:
    """ASE's Langevin integrator."""
    rng = generator(seed)
    atoms: Atoms = start.to_atoms()
    atoms.calc = make_calculator(find_calculator(reference.calculator), reference.arguments)
    spread = np.sqrt(ase_units.kB * sampling.temperature_K / atoms.get_masses())[:, None]
    atoms.set_velocities(rng.normal(size=(len(atoms), 3)) * spread)
    dynamics = Langevin(
        atoms,
        timestep=sampling.timestep_fs * FEMTOSECOND,
        temperature_K=sampling.temperature_K,
        friction=sampling.friction_per_ps / (1000.0 * FEMTOSECOND),
        fixcm=False,
        rng=rng,
    )
    dynamics.run(sampling.steps(sampling.equilibration_ps))
    for _ in range(count):
        dynamics.run(sampling.steps(sampling.spacing_ps))
        yield atoms.get_positions()
