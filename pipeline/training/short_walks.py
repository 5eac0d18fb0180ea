"""Short unbiased walks from labelled structures: does a model keep atoms where atoms can be?

A model may be right wherever a label is and still have a hole beside it that MD falls into within femtoseconds.
"""

from collections.abc import Sequence
from itertools import zip_longest

from pipeline.dynamics.slots import Nursery
from pipeline.dynamics.walkers import WalkerBatch
from pipeline.frames import Frame
from pipeline.potentials.model import Model
from pipeline.records import Label
from pipeline.settings.walkers import BiasSettings, WalkerSettings

UNREACHED = 1e30
"""A threshold that nothing passes."""


def newest_starts(labels: Sequence[Label], count: int) -> list[Frame]:
    """Structures to walk from: the newest of every system in turn; again from the newest where there are not enough.

    Args:
        labels: oldest first.
        count: how many; there are more where there are more systems than that, and none where it is 0 or there are no labels.
    """
    systems: dict[str, list[Frame]] = {}
    for label in reversed(labels):
        systems.setdefault(label.frame.system, []).append(label.frame)
    if not (systems and count):
        return []
    dealt = [frame for turn in zip_longest(*systems.values()) for frame in turn if frame is not None]
    wanted = max(count, len(systems))
    return [dealt[k % len(dealt)] for k in range(wanted)]


def unsound_walks(model: Model, starts: Sequence[Frame], *, settings: WalkerSettings, steps: int, seed: int) -> int:
    """How many walks end in what cannot be: no numbers, atoms too close or alone, forces too large.

    One walk from each start, all in one batch, at the hottest temperature of the walkers, in the cells they start with.
    Velocities and noise follow from the seed: two models are asked to walk from the very same states.

    Args:
        model: moves them; knows all elements.
        starts: where from, at least one.
        settings: of the campaign's walkers: time step, friction, limits.
        steps: MD steps of each; made up to the next stop check.
        seed: of velocities and noise.
    """
    every = settings.stop.check_every
    steps = -(-steps // every) * every
    settings = _plain(settings, steps)
    temperatures_K = [max(settings.temperatures_K)] * len(starts)

    def nursery(starts: Sequence[Frame], prefix: str) -> Nursery:
        return Nursery(
            starts=starts,
            settings=settings,
            temperatures_K=temperatures_K,
            pressures_MPa=[0.0] * len(temperatures_K),
            seed=seed,
            prefix=prefix,
        )

    walkers = [nursery([start], "gate").walker(slot, 0) for slot, start in enumerate(starts)]
    others = nursery(starts, "gate-next")
    # a new model has no file yet; what stands for its digest tells walkers that their forces are still to be computed
    journey = WalkerBatch(model, "gate", settings, others, walkers).run(steps)
    # nothing but the checks that tell the impossible ends a walk here, and who ended was replaced by a younger one
    return sum(walker.age < journey.steps for walker in journey.walkers)


def _plain(settings: WalkerSettings, steps: int) -> WalkerSettings:
    """NVT without bias and hills, and no end for what is uncertain, old or reacts."""
    stop = settings.stop.model_copy(update={"uncertainty_eV_per_A": UNREACHED, "bond_graph": False})
    return settings.model_copy(
        update={
            "bias": BiasSettings(tau=0.0),
            "barostat": None,
            "metadynamics": None,
            "stop": stop,
            "store_every": steps,
            "max_steps": steps + 1,
        }
    )
