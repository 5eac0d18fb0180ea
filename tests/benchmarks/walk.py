"""Cost of a walker-step: kinds of bias against none, alternating in the same run, for several batch sizes.

python tests/benchmarks/walk.py [--smoke] [--system alanine-dipeptide] [--cutoff 5] [--batch 16 ...] [--device cpu]
                                [--kinds unbiased ...] [--steps 40] [--repeats 9] [--legs 10]

GM-NN of the published size (S = 7, K = 9, 512-512) with random weights, rattled start structures, a small time step, open
stop checks, so that no walker is replaced. On a CPU, CPU time of one thread; on a GPU, time until it has finished. The kinds
take turns, so that a busy machine burdens all of them. Then walk tasks: a segment of 200 steps in one leg and in several, each
of which loads the model, reads the walkers and writes them. The last line is one JSON object.
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
from pipeline.settings.uncertainty import Projection
from pipeline.settings.walkers import BiasSettings, StopSettings, WalkerSettings
from pipeline.shards import write_labels
from pipeline.uncertainty.estimator import Estimator
from pipeline.walk import run_walk

TEMPLATES = Path(__file__).parents[2] / "apps" / "templates"
TAU = 0.25
RATTLE_A = 0.05
OPEN = StopSettings(uncertainty_eV_per_A=1e9, max_force_eV_per_A=1e9, min_distance_fraction=0.0, isolation_A=5.0)
ENDLESS: dict[str, Any] = {"timestep_fs": 0.05, "store_every": 10**6, "max_steps": 10**9, "stop": OPEN}
"""Settings with which no walker is replaced."""


@dataclass(frozen=True)
class Kind:
    """What is timed: a bias and the features it uses."""

    name: str
    tau: float
    features: str = "last_layer"
    projection: Projection = "structured"
    heavy_only: bool = False

    @property
    def model(self) -> tuple[str, Projection]:
        """Which of the models it needs."""
        return self.features, self.projection


KINDS = (
    Kind("unbiased", 0.0),
    Kind("biased", TAU),
    Kind("biased_h0", TAU, heavy_only=True),
    Kind("sketched", TAU, features="sketched"),
    Kind("gaussian", TAU, features="sketched", projection="gaussian"),
)


def rattled(atoms: Atoms, count: int) -> list[Frame]:
    """Copies with every atom displaced."""
    frames = []
    for seed in range(count):
        copy = atoms.copy()
        copy.rattle(RATTLE_A, seed=seed)
        frames.append(Frame.from_atoms(copy, system="benchmark"))
    return frames


def structures(system: str) -> list[Frame]:
    """Of a template, or of a structure file: its first structure, rattled."""
    template = TEMPLATES / system / f"{system}.extxyz"
    return rattled(read(template if template.is_file() else system, index=0), 32)


def model_for(
    frames: list[Frame],
    settings: GMNNSettings,
    features: str = "last_layer",
    projection: Projection = "structured",
    device: str = "cpu",
) -> Model:
    """A random model with a posterior of these structures."""
    elements = sorted({int(n) for frame in frames for n in frame.numbers})
    generator = torch.Generator().manual_seed(0)
    spec = FeatureSpec(kind=features, dimension=512, projection=projection)
    potential = GMNN(settings, elements, spec, generator).requires_grad_(False)
    batch = make_batch(frames, settings.cutoff_A)
    phi = potential(batch, features=True).features
    assert phi is not None
    mean = batch.sum_atoms(phi) / batch.n_atoms.unsqueeze(1)
    estimator = Estimator.fit("posterior", mean.to(phi.dtype), phi, sigma=0.01)
    return Model([potential], estimator, version=1).to(torch.device(device))


def walkers_of(kind: Kind, model: Model, frames: list[Frame], batch: int) -> WalkerBatch:
    """A batch of this kind."""
    bias = BiasSettings(tau=kind.tau, species_weights={"H": 0.0} if kind.heavy_only else {})
    return warm(model, WalkerSettings(**ENDLESS, bias=bias), frames, batch)


def warm(model: Model, settings: WalkerSettings, frames: list[Frame], batch: int) -> WalkerBatch:
    """A batch of walkers that has made the steps that make its caches."""
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


def milliseconds(walkers: WalkerBatch, batch: int, steps: int, device: str) -> float:
    """Milliseconds per walker and step: of the processor, or until the GPU has finished."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    started = clock()
    journey = walkers.run(steps)
    if device != "cpu":
        torch.cuda.synchronize()
    seconds = clock() - started
    assert not journey.stops, "a walker stopped: the time would hold its replacement"
    return 1e3 * seconds / steps / batch


def measure(walkers: dict[str, WalkerBatch], batch: int, steps: int, repeats: int, device: str) -> dict[str, Any]:
    """Median times of all kinds at one batch size, and ratios of times taken next to each other."""
    times: dict[str, list[float]] = {name: [] for name in walkers}
    for _ in range(repeats):
        for name, one in walkers.items():
            times[name].append(milliseconds(one, batch, steps, device))
    first = next(iter(times))
    return {
        "batch": batch,
        **{f"{name}_ms": statistics.median(values) for name, values in times.items()},
        **{f"{name}_least_ms": min(values) for name, values in times.items()},
        **{f"{name}_steps_per_s": 1e3 / statistics.median(values) for name, values in times.items()},
        **{
            f"ratio_{name}": statistics.median(a / b for a, b in zip(values, times[first], strict=True))
            for name, values in times.items()
            if name != first
        },
    }


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


def arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    parser.add_argument("--system", default="alanine-dipeptide", help="a template, or a structure file")
    parser.add_argument("--cutoff", type=float, default=5.0, help="Å; published: 5, and 6 for MIL-53(Al)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--batch", type=int, nargs="+", help="walkers; by default 1 to 64, on a GPU 16 to 4096")
    parser.add_argument("--kinds", nargs="+", choices=[kind.name for kind in KINDS], help="the first is compared with")
    parser.add_argument("--steps", type=int, default=40, help="steps per sample, a multiple of 10")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--channels", type=int, default=7)
    parser.add_argument("--hidden", type=int, nargs="+", default=[512, 512])
    parser.add_argument("--legs", type=int, default=10, help="into how many legs a segment is cut; 0: no segment")
    asked = parser.parse_args()
    asked.batch = asked.batch or ([1, 4, 16, 64] if asked.device == "cpu" else [16, 64, 256, 1024, 4096])
    asked.kinds = asked.kinds or [kind.name for kind in KINDS]
    if asked.smoke:
        asked.batch, asked.steps, asked.repeats, asked.channels, asked.hidden = [2], 10, 2, 3, [16]
    return asked


def main() -> None:
    """Parse, measure, print."""
    asked = arguments()
    torch.set_num_threads(1)
    frames = structures(asked.system)
    settings = GMNNSettings(channels=asked.channels, gaussians=9, hidden=tuple(asked.hidden), cutoff_A=asked.cutoff)
    kinds = [next(kind for kind in KINDS if kind.name == name) for name in asked.kinds]
    models = {kind.model: model_for(frames, settings, *kind.model, device=asked.device) for kind in kinds}

    print(f"{asked.system}: {len(frames[0])} atoms; ms per walker-step on {asked.device}, median of {asked.repeats}")
    names = [kind.name for kind in kinds]
    print(
        f"{'batch':>6}" + "".join(f"{name:>12}" for name in names) + "".join(f"{name + ' ×':>14}" for name in names[1:])
    )
    results = []
    for batch in asked.batch:
        walkers = {kind.name: walkers_of(kind, models[kind.model], frames, batch) for kind in kinds}
        row = measure(walkers, batch, asked.steps, asked.repeats, asked.device)
        results.append(row)
        columns = "".join(f"{row[f'{name}_ms']:>12.4f}" for name in names)
        print(f"{batch:>6}{columns}" + "".join(f"{row[f'ratio_{name}']:>14.2f}" for name in names[1:]), flush=True)
    segment = 20 * asked.legs
    cut = None
    if asked.legs and asked.device == "cpu":
        model = models.get(KINDS[0].model) or model_for(frames, settings)
        cut = leg_cost(model, frames, asked.batch[-1] if asked.smoke else 16, segment, asked.legs)
        print(f"{segment} steps in one leg {cut['one_leg_s']:.2f} s, in {asked.legs} legs {cut['legs_s']:.2f} s")
    reference = next((row for row in results if row["batch"] == 16), results[-1])
    print(
        json.dumps(
            {
                "benchmark": "walk",
                "system": asked.system,
                "atoms": len(frames[0]),
                "device": asked.device,
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
