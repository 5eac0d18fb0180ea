"""What a campaign will take, from the measured costs of one piece of each kind of work."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.plan import batches, picks_at
from pipeline.settings.campaign import CampaignSettings
from pipeline.settings.site import LocalHTEXSite, Site, SlurmSite


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Measured costs of one piece of each kind of work.

    Attributes:
        label_s: seconds per reference calculation (median; the first one of a worker, which may load things, left out).
        label_core_s: core seconds that one holds, median; 0 where the reference does not say.
        handling_s: seconds a worker spends between two short labels: the way to the driver and back, files.
        structure_epoch_s: seconds of training per structure and epoch.
        walker_step_s: seconds per MD step of a whole batch of ``walkers.batch`` walkers.
        walker_steps: MD steps the trial made, over all walkers.
    """

    label_s: float
    label_core_s: float = 0.0
    handling_s: float
    structure_epoch_s: float
    walker_step_s: float
    walker_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one worker takes of a machine: CPU cores and GPUs its job asks for, divided by the workers of the job."""

    cores: float
    gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One kind of work in a whole campaign.

    Attributes:
        tasks: how many.
        wall_s: seconds of wall time on the slots of the site.
        cpu_h, gpu_h: hours of the cores and GPUs of the workers while they work.
    """

    tasks: int
    wall_s: float
    cpu_h: float
    gpu_h: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A whole campaign in which every round walks its full segments and trains its full epochs; it often takes less.

    Neither selections nor the start of workers count.

    Attributes:
        rounds: after the first one, until the label budget is spent.
        parts: by kind of work.
        steps_per_s_task: walker steps per second of one walk task.
        steps_per_s: of all walk tasks that run at a time.
        labels_per_h: in all label slots.
        training_s: the longest training, seconds.
    """

    rounds: int
    parts: dict[str, Part]
    steps_per_s_task: float
    steps_per_s: float
    labels_per_h: float
    training_s: float

    @property
    def total_s(self) -> float:
        """Seconds of wall time with all slots at work: kinds of work follow one another."""
        return sum(part.wall_s for part in self.parts.values())


def estimate(settings: CampaignSettings, costs: Costs) -> Estimate:
    """Wall time and resources of the campaign from measured costs, on the slots of the site."""
    site = settings.site
    asked = list(labels_by_round(settings))
    sizes = [sum(asked[: done + 1]) for done in range(len(asked))]
    rounds = len(asked) - 1
    tasks = batches(settings)
    at_a_time = min(tasks, site.walk_slots)
    segment_s = settings.walkers.segment_steps * costs.walker_step_s
    label_s = costs.label_s + costs.handling_s
    trainings = [_training_s(size, settings, costs, first=not done) for done, size in enumerate(sizes)]
    waves = sum(math.ceil(count / site.label_slots) for count in asked)
    return Estimate(
        rounds=rounds,
        parts={
            "walk": _part("walk", site, rounds * tasks, rounds * math.ceil(tasks / at_a_time) * segment_s, segment_s),
            "label": _part("label", site, sizes[-1], waves * label_s, label_s),
            "train": _part("train", site, len(trainings), sum(trainings), sum(trainings) / len(trainings)),
        },
        steps_per_s_task=settings.walkers.batch / costs.walker_step_s,
        steps_per_s=at_a_time * settings.walkers.batch / costs.walker_step_s,
        labels_per_h=3600.0 * site.label_slots / label_s,
        training_s=max(trainings),
    )


def labels_by_round(settings: CampaignSettings) -> Iterator[int]:
    """Labels each round asks for, the initial ones first, until the budget is spent or the rounds are over."""
    spent = settings.labels.initial
    yield spent
    for _ in range(settings.stop.max_rounds):
        asked = picks_at(spent, spent, settings)
        if asked < 1:
            return
        spent += asked
        yield asked


def share_of(kind: str, site: Site) -> Share:
    """What a worker for a kind of work takes."""
    if isinstance(site, SlurmSite):
        allocation = site.allocations[site.routes[kind]]
        nodes = site.launch.nodes
        if kind == "label" and nodes > 1:  # a worker for each group of nodes
            return Share(cores=nodes * allocation.cores_per_node, gpus=nodes * allocation.gpus_per_node)
        workers = allocation.workers_per_node
        return Share(cores=allocation.cores_per_node / workers, gpus=allocation.gpus_per_node / workers)
    train = site.train_threads
    threads = {"walk": site.walk_threads, "label": site.label_threads, "select": train, "train": train}
    with_gpu = isinstance(site, LocalHTEXSite) and site.gpus > 0 and kind != "label"
    return Share(cores=threads[kind], gpus=1.0 if with_gpu else 0.0)


def _training_s(labels: int, settings: CampaignSettings, costs: Costs, *, first: bool) -> float:
    training, splits = settings.training, settings.labels.splits
    epochs = training.epochs if first or training.start == "scratch" else training.warm_epochs
    trained = (1.0 - splits.validation - splits.calibration) * labels
    return costs.structure_epoch_s * trained * epochs


def _part(kind: str, site: Site, tasks: int, wall_s: float, task_s: float) -> Part:
    share = share_of(kind, site)
    hours = tasks * task_s / 3600.0
    return Part(tasks=tasks, wall_s=wall_s, cpu_h=hours * share.cores, gpu_h=hours * share.gpus)
