"""Cost of a walker-step: biased against unbiased, alternating in the same run, for several batch sizes.

python tests/benchmarks/walk.py [--smoke] [--system alanine-dipeptide] [--batch 16 ...] [--steps 40] [--repeats 9] [--legs 10]

GM-NN of the published size (S = 7, K = 9, 512-512) with random weights, rattled start structures, a small time step and open
stop checks, so that no walker is replaced. CPU time of one thread; the kinds take turns, so that a busy machine burdens all of
them. Then walk tasks: a segment of 200 steps in one leg and in several, each of which loads the model, reads the walkers and
writes them. The last line is one JSON object.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from ase.io import read
from provenance import provenance

from pipeline.batching import make_batch
from pipeline.dynamics.slots import Nursery
from pipeline.dynamics.walkers import WalkerBatch
from pipeline.frames import Frame
from pipeline.potentials import save
from pipeline.potentials.gmnn import GMNN, FeatureSpec
from pipeline.potentials.model import Model
from pipeline.records import FileRef, Label, ModelRef, Split, WalkTask
from pipeline.settings.potential import GMNNSettings
from pipeline.settings.walkers import BiasSettings, StopSettings, WalkerSettings
from pipeline.shards import write_labels
from pipeline.uncertainty.estimator import Estimator
from pipeline.walk import run_walk

TEMPLATES = Path(__file__).parents[2] / "apps" / "templates"
TAU = 0.25
RATTLE_A = 0.05
OPEN = StopSettings(uncertainty_eV_per_A=1e9, max_force_eV_per_A=1e9, min_distance_fraction=0.0, isolation_A=5.0)


@dataclass(frozen=True)
class Kind:
    """What is timed: a bias and the features it uses."""

    name: str
    tau: float
    features: str = "last_layer"
    heavy_only: bool = False


KINDS = (
    Kind("unbiased", 0.0),
    Kind("biased", TAU),
    Kind("biased_h0", TAU, heavy_only=True),
    Kind("sketched", TAU, features="sketched"),
)


def rattled(atoms: Atoms, count: int) -> list[Frame]:
    """Copies with every atom displaced."""
    frames = []
    for seed in range(count):
        copy = atoms.copy()
        copy.rattle(RATTLE_A, seed=seed)
        frames.append(Frame.from_atoms(copy, system="benchmark"))
    return frames


def model_for(frames: list[Frame], settings: GMNNSettings, features: str) -> Model:
    """A random model with a posterior of these structures."""
    elements = sorted({int(n) for frame in frames for n in frame.numbers})
    generator = torch.Generator().manual_seed(0)
    potential = GMNN(settings, elements, FeatureSpec(kind=features, dimension=512), generator).requires_grad_(False)
    batch = make_batch(frames, settings.cutoff_A)
    phi = potential(batch, features=True).features
    assert phi is not None
    structures = batch.sum_atoms(phi) / batch.n_atoms.unsqueeze(1)
    return Model([potential], Estimator.fit("posterior", structures.to(phi.dtype), phi, sigma=0.01), version=1)


def walkers_of(kind: Kind, model: Model, frames: list[Frame], batch: int) -> WalkerBatch:
    """A batch of this kind, warmed up by the step that makes its caches."""
    bias = BiasSettings(tau=kind.tau, species_weights={"H": 0.0} if kind.heavy_only else {})
    settings = WalkerSettings(timestep_fs=0.05, store_every=10**6, max_steps=10**9, bias=bias, stop=OPEN)
    nursery = Nursery(
        starts=frames,
        settings=settings,
        temperatures_K=[300.0] * batch,
        pressures_MPa=[0.0] * batch,
        seed=1,
        prefix="b",
    )
    walkers = WalkerBatch(model, "benchmark", settings, nursery, [None] * batch)
    walkers.run(10)
    return walkers


def cpu_ms(walkers: WalkerBatch, batch: int, steps: int) -> float:
    """CPU milliseconds per walker and step."""
    started = time.process_time()
    journey = walkers.run(steps)
    seconds = time.process_time() - started
    assert not journey.stops, "a walker stopped: the time would hold its replacement"
    return 1e3 * seconds / steps / batch


def measure(models: dict[str, Model], frames: list[Frame], batch: int, steps: int, repeats: int) -> dict[str, Any]:
    """Median times of all kinds at one batch size, and ratios of times taken next to each other."""
    walkers = {kind.name: walkers_of(kind, models[kind.features], frames, batch) for kind in KINDS}
    times: dict[str, list[float]] = {kind.name: [] for kind in KINDS}
    for _ in range(repeats):
        for name, one in walkers.items():
            times[name].append(cpu_ms(one, batch, steps))

    def ratio(name: str) -> float:
        return statistics.median(a / b for a, b in zip(times[name], times["unbiased"], strict=True))

    medians = {f"{name}_ms": statistics.median(values) for name, values in times.items()}
    ratios = {"ratio": ratio("biased"), "ratio_h0": ratio("biased_h0"), "ratio_sketched": ratio("sketched")}
    return {"batch": batch, **medians, **ratios}


def leg_cost(model: Model, frames: list[Frame], batch: int, steps: int, legs: int) -> dict[str, Any]:
    """CPU seconds of a segment made by one walk task, and by several after one another."""
    settings = WalkerSettings(timestep_fs=0.05, max_steps=10**9, stop=OPEN)
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        labels = [
            Label(frame=one, energy=0.0, forces=one.positions, stress=None, split=Split.TRAIN, round=0)
            for one in frames
        ]
        task = WalkTask(
            task="benchmark",
            round=1,
            item=0,
            leg=0,
            model=ModelRef(version=1, file=save(model, here / "model.pt")),
            settings=settings,
            temperatures_K=(300.0,) * batch,
            pressures_MPa=(0.0,) * len((300.0,) * batch),
            variables={},
            starts=write_labels(here / "starts.h5", labels),
            resume=None,
            steps=steps,
            enough=0,
            born=(0,) * batch,
            seconds=math.inf,
            output=str(here / "output"),
            seed=1,
            threads=1,
        )

        def seconds(count: int) -> tuple[float, FileRef | None]:
            leg, started = replace(task, steps=steps // count), time.process_time()
            for _ in range(count):
                result = run_walk(leg)
                assert result.steps == leg.steps, result.reason
                leg = replace(leg, resume=result.walkers, born=result.born)
            return time.process_time() - started, result.walkers

        cut, whole = seconds(legs), seconds(1)
        assert cut[1] is not None
        assert whole[1] is not None
        assert cut[1].sha256 == whole[1].sha256, "the walkers went elsewhere"
    return {
        "legs": legs,
        "leg_steps": steps,
        "one_leg_s": whole[0],
        "legs_s": cut[0],
        "per_leg_s": (cut[0] - whole[0]) / max(legs - 1, 1),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    parser.add_argument("--system", default="alanine-dipeptide", help="a template, or a structure file")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--steps", type=int, default=40, help="steps per sample, a multiple of 10")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--channels", type=int, default=7)
    parser.add_argument("--hidden", type=int, nargs="+", default=[512, 512])
    parser.add_argument("--legs", type=int, default=10, help="into how many legs a segment is cut")
    asked = parser.parse_args()
    if asked.smoke:
        asked.batch, asked.steps, asked.repeats, asked.channels, asked.hidden = [2], 10, 2, 3, [16]
    torch.set_num_threads(1)
    template = TEMPLATES / asked.system / f"{asked.system}.extxyz"
    frames = rattled(read(template if template.is_file() else asked.system), 32)
    settings = GMNNSettings(channels=asked.channels, gaussians=9, hidden=tuple(asked.hidden))
    models = {features: model_for(frames, settings, features) for features in ("last_layer", "sketched")}

    print(f"{asked.system}: {len(frames[0])} atoms; CPU ms per walker-step, one thread, median of {asked.repeats}")
    print(
        f"{'batch':>6}{'unbiased':>10}{'biased':>10}{'H: 0':>10}{'sketched':>10}{'ratio':>8}{'H: 0':>8}{'sketched':>10}"
    )
    results = []
    for batch in asked.batch:
        row = measure(models, frames, batch, asked.steps, asked.repeats)
        results.append(row)
        print(
            f"{batch:>6}{row['unbiased_ms']:>10.3f}{row['biased_ms']:>10.3f}{row['biased_h0_ms']:>10.3f}"
            f"{row['sketched_ms']:>10.3f}{row['ratio']:>8.2f}{row['ratio_h0']:>8.2f}{row['ratio_sketched']:>10.2f}",
            flush=True,
        )
    segment = 20 * asked.legs
    cut = leg_cost(models["last_layer"], frames, asked.batch[-1] if asked.smoke else 16, segment, asked.legs)
    print(f"{segment} steps in one leg {cut['one_leg_s']:.2f} s, in {asked.legs} legs {cut['legs_s']:.2f} s")
    reference = next((row for row in results if row["batch"] == 16), results[-1])
    print(
        json.dumps(
            {
                "benchmark": "walk",
                "system": asked.system,
                "atoms": len(frames[0]),
                **reference,
                "sweep": results,
                "segment": cut,
                "settings": {
                    **settings.model_dump(mode="json"),
                    "tau": TAU,
                    "steps": asked.steps,
                    "repeats": asked.repeats,
                },
                **provenance(),
            }
        )
    )


if __name__ == "__main__":
    main()
