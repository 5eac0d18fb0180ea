"""Walkers at constant pressure: what moving the cell and biasing its stress cost, and whether volumes are right.

python tests/benchmarks/npt.py [--smoke] [--system mil53-al] [--batch 8] [--steps 20] [--repeats 7] [--ase-steps 4000]

First the CPU time of a walker-step of MIL-53(Al) with a GM-NN of the published size (cutoff 6 Å, S = 7, K = 9, 512-512, random
weights) with and without a barostat, a bias force and a bias stress. The kinds take turns, so that a busy machine burdens all
of them. --system is a template, a structure file, or "copper", a crystal that is built here. Then the volume of a Lennard-Jones
crystal of 32 argon atoms against ASE's own integrator and potential (``LangevinBAOAB``, ``LennardJones``), with standard errors
from blocks of 1 ps. The last line is one JSON object.
"""

import argparse
import json
import statistics
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.build import bulk
from ase.calculators.lj import LennardJones as AseLennardJones
from ase.md.langevinbaoab import LangevinBAOAB
from provenance import provenance
from walk import ENDLESS, TAU, TEMPLATES, milliseconds, model_for, rattled, structures, warm

from pipeline.dynamics.walkers import WalkerBatch
from pipeline.frames import Frame
from pipeline.potentials.model import Model
from pipeline.settings.potential import GMNNSettings
from pipeline.settings.walkers import BarostatSettings, BiasSettings, WalkerSettings
from pipeline.units import BOLTZMANN_EV_PER_K, FEMTOSECOND, GIGAPASCAL

sys.path.insert(0, str(Path(__file__).parents[1] / "physics"))  # the crystals of the physics tests

from lennard_jones import (
    CUTOFF_A,
    EPSILON_EV,
    MASS,
    ONSET_A,
    SIGMA_A,
    LennardJones,
    Replicas,
    argon,
    deviation_and_error,
    mean_and_error,
)

TAU_STRESS = 0.25
ARGON_K, ARGON_MPa, CELL_TIME_FS, RELAXATION_FS = 40.0, 20.0, 300.0, 250.0
BLOCK_FS = 1000.0


@dataclass(frozen=True)
class Kind:
    """What is timed."""

    name: str
    barostat: str | None
    tau: float = 0.0
    tau_stress: float = 0.0
    stress_every: int = 5


KINDS = (
    Kind("nvt", None),
    Kind("nvt_force", None, TAU),
    Kind("isotropic", "isotropic"),
    Kind("flexible", "flexible"),
    Kind("isotropic_force", "isotropic", TAU),
    Kind("flexible_force", "flexible", TAU),
    Kind("flexible_stress", "flexible", TAU, TAU_STRESS),
    Kind("flexible_stress_every_step", "flexible", TAU, TAU_STRESS, stress_every=1),
)


def frames_of(system: str) -> list[Frame]:
    """Rattled structures of a template or a file, or of a crystal that needs neither."""
    if system == "copper":
        return rattled(bulk("Cu", cubic=True) * (2, 2, 2), 32)
    files = sorted((TEMPLATES / system).glob("*.extxyz"))
    return structures(str(files[0]) if files else system)


def walkers_of(kind: Kind, model: Model, frames: list[Frame], batch: int) -> WalkerBatch:
    """A batch of this kind."""
    settings = WalkerSettings(
        **ENDLESS,
        bias=BiasSettings(tau=kind.tau, tau_stress=kind.tau_stress, stress_every=kind.stress_every),
        barostat=None if kind.barostat is None else BarostatSettings(kind=kind.barostat, time_fs=1000.0),
    )
    return warm(model, settings, frames, batch)


def costs(model: Model, frames: list[Frame], batch: int, steps: int, repeats: int) -> dict[str, dict[str, float]]:
    """Of every kind: its median time, ms, and the median of its ratios to ``nvt`` in the same turn."""
    walkers = {kind.name: walkers_of(kind, model, frames, batch) for kind in KINDS}
    times: dict[str, list[float]] = {name: [] for name in walkers}
    for _ in range(repeats):
        for name, one in walkers.items():
            times[name].append(milliseconds(one, batch, steps, "cpu"))

    def ratio(name: str) -> float:
        return statistics.median(a / b for a, b in zip(times[name], times["nvt"], strict=True))

    return {name: {"ms": statistics.median(taken), "ratio": ratio(name)} for name, taken in times.items()}


def our_volumes(steps: int, replicas: int, timestep_fs: float) -> np.ndarray:
    """(S, R) volumes of replicas, Å³."""
    walkers = Replicas(
        LennardJones(),
        argon(),
        pressures_MPa=[ARGON_MPa] * replicas,
        temperature_K=ARGON_K,
        timestep_fs=timestep_fs,
        time_fs=CELL_TIME_FS,
        friction_per_ps=1e3 / RELAXATION_FS,
        cell_friction_per_ps=1e3 / RELAXATION_FS,
        seed=1,
    )
    walkers.run(steps // 5, 1)
    found = walkers.run(steps, 5).volumes
    assert np.abs(walkers.missed()).max() < 1e-12
    return found


def ase_volumes(steps: int, timestep_fs: float) -> np.ndarray:
    """(S, R) volumes of one trajectory of ASE, cut into R blocks that count as independent, Å³."""
    atoms, thermal, random = argon(), BOLTZMANN_EV_PER_K * ARGON_K, np.random.default_rng(2)
    atoms.calc = AseLennardJones(sigma=SIGMA_A, epsilon=EPSILON_EV, rc=CUTOFF_A, ro=ONSET_A, smooth=True)
    atoms.set_masses([MASS] * len(atoms))
    atoms.set_momenta(np.sqrt(MASS * thermal) * random.normal(size=(len(atoms), 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dynamics = LangevinBAOAB(
            atoms,
            timestep_fs * FEMTOSECOND,
            temperature_K=ARGON_K,
            externalstress=-ARGON_MPa * 1e-3 * GIGAPASCAL,
            hydrostatic=True,
            T_tau=RELAXATION_FS * FEMTOSECOND,
            P_tau=RELAXATION_FS * FEMTOSECOND,
            P_mass=(3 * len(atoms) + 3) * thermal * (CELL_TIME_FS * FEMTOSECOND) ** 2,
            rng=random,
        )
    dynamics.run(steps // 5)
    taken: list[float] = []
    dynamics.attach(lambda: taken.append(atoms.get_volume()), interval=5)
    dynamics.run(steps)
    size = max(1, min(len(taken) // 2, round(BLOCK_FS / timestep_fs / 5)))
    blocks = len(taken) // size
    return np.array(taken[: blocks * size]).reshape(blocks, size).T


def volume_check(ase_steps: int, replicas: int) -> dict[str, Any]:
    """Mean and standard deviation of the volume, ours and ASE's, and their differences in standard errors."""
    timestep_fs = 10.0
    ours, theirs = our_volumes(max(20, ase_steps // 8), replicas, timestep_fs), ase_volumes(ase_steps, timestep_fs)
    found: dict[str, Any] = {"temperature_K": ARGON_K, "pressure_MPa": ARGON_MPa, "ase_steps": ase_steps}
    for name, law in (("mean", mean_and_error), ("deviation", deviation_and_error)):
        (here, error), (there, other) = law(ours), law(theirs)
        found[name] = {
            "ours_A3": float(here),
            "ours_error_A3": float(error),
            "ase_A3": float(there),
            "ase_error_A3": float(other),
            "standard_errors_apart": float(abs(here - there) / np.hypot(error, other)),
        }
    return found


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    parser.add_argument("--system", default="mil53-al", help='a template, a structure file, or "copper"')
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20, help="steps per sample, a multiple of 10")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cutoff", type=float, default=6.0, help="Å")
    parser.add_argument("--channels", type=int, default=7)
    parser.add_argument("--hidden", type=int, nargs="+", default=[512, 512])
    parser.add_argument("--ase-steps", type=int, default=4000, help="steps of ASE's trajectory; ours is as costly")
    asked = parser.parse_args()
    replicas = 32
    if asked.smoke:
        asked.system, asked.batch, asked.steps, asked.repeats = "copper", 2, 10, 2
        asked.cutoff, asked.channels, asked.hidden, asked.ase_steps, replicas = 4.0, 3, [16], 40, 4
    torch.set_num_threads(1)
    frames = frames_of(asked.system)
    settings = GMNNSettings(cutoff_A=asked.cutoff, channels=asked.channels, gaussians=9, hidden=tuple(asked.hidden))
    model = model_for(frames, settings)

    print(f"{asked.system}: {len(frames[0])} atoms, batch {asked.batch}; CPU ms per walker-step, one thread")
    measured = costs(model, frames, asked.batch, asked.steps, asked.repeats)
    for name, row in measured.items():
        print(f"{name:>28}{row['ms']:>9.2f}{row['ratio']:>8.2f}", flush=True)
    check = volume_check(asked.ase_steps, replicas)
    for name in ("mean", "deviation"):
        row = check[name]
        print(
            f"{name} of the volume of argon: {row['ours_A3']:.2f} ± {row['ours_error_A3']:.2f} Å³, ASE "
            f"{row['ase_A3']:.2f} ± {row['ase_error_A3']:.2f} Å³ ({row['standard_errors_apart']:.1f} standard errors)"
        )
    print(
        json.dumps(
            {
                "benchmark": "npt",
                "system": asked.system,
                "atoms": len(frames[0]),
                "batch": asked.batch,
                "costs": measured,
                "volume": check,
                "settings": {
                    **settings.model_dump(mode="json"),
                    "tau": TAU,
                    "tau_stress": TAU_STRESS,
                    "steps": asked.steps,
                    "repeats": asked.repeats,
                },
                **provenance(),
            }
        )
    )


if __name__ == "__main__":
    main()
