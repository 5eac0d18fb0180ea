"""The machine of a simulation: more or fewer nodes, shared out between walkers and labels."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from statistics import fmean, stdev

from pipeline.errors import SettingsError
from pipeline.estimate import labels_by_round
from pipeline.settings.allocation import Allocation
from pipeline.settings.campaign import CampaignSettings
from pipeline.settings.schedule import StreamingSchedule
from pipeline.settings.site import InlineSite, SlurmSite
from pipeline.simulation.campaign import Report, simulate
from pipeline.simulation.durations import SAMPLES, Durations, means

SHORT = 20
"""Labels per slot of the campaigns that splits are compared with."""
MOST_LABELS = 4000
"""Labels of these campaigns, at most, unless there are more slots."""
KINDS = ("walk", "label")
TURNS = 6
"""How often the range of splits is narrowed down."""
BEGINNING = 50
"""Labels that are simulated at least."""
SEEDS = 3
"""Simulations that machines are compared by."""
CERTAIN = 2.0
"""Standard errors beyond which a difference is more than chance."""
ROUNDS = 5
"""Rounds that are simulated at least."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Units of walkers and of labels: nodes of a cluster, slots of this machine."""

    walk: int
    label: int


@dataclass(frozen=True, slots=True)
class Sized:
    """Settings of another machine, and what was changed besides it, one line each."""

    settings: CampaignSettings
    changes: tuple[str, ...]


def machine_of(settings: CampaignSettings) -> Machine:
    """Nodes, or slots, of walkers and of labels when all jobs run."""
    site = settings.site
    if isinstance(site, SlurmSite):
        return Machine(*(job.max_blocks * job.nodes_per_block for job in (site.walk, site.label)))
    return Machine(site.walk_slots, site.label_slots)


def unit_of(settings: CampaignSettings) -> str:
    """What a machine is counted in."""
    return "nodes" if isinstance(settings.site, SlurmSite) else "slots"


def sized(settings: CampaignSettings, machine: Machine) -> Sized:
    """The settings with so many nodes, or slots, and with as many walkers as these need.

    Raises:
        SettingsError: nodes that are not whole jobs, or a site that has one slot.
    """
    site = settings.site
    if isinstance(site, InlineSite):
        if machine != Machine(site.walk_slots, site.label_slots):
            raise SettingsError("site.kind is inline: it has one slot.", "Give another site with --site.")
        return Sized(settings, ())
    if isinstance(site, SlurmSite):
        jobs = {"walk": _jobs("walk", site.walk, machine.walk), "label": _jobs("label", site.label, machine.label)}
        site = site.model_copy(update=jobs)
    else:
        site = site.model_copy(update={"walk_slots": machine.walk, "label_slots": machine.label})
    return _grown(settings.model_copy(update={"site": site}))


def steps_of(settings: CampaignSettings) -> Machine:
    """Nodes, or slots, of one job of each kind: less cannot be added."""
    site = settings.site
    if isinstance(site, SlurmSite):
        return Machine(site.walk.nodes_per_block, site.label.nodes_per_block)
    return Machine(1, 1)


def best_split(
    settings: CampaignSettings, total: int, durations: Durations, tell: Callable[[str], None] = lambda text: None
) -> Machine:
    """Of so many nodes, or slots, those for walkers: the campaign that is over first.

    Short campaigns are simulated: first with the split at which walkers find as many candidates as labels take, then with ever
    closer ones around the best so far.

    Raises:
        SettingsError: there are too few to share out.
    """
    step = steps_of(settings)
    splits = [
        Machine(walk, total - walk)
        for walk in range(step.walk, total - step.label + 1, step.walk)
        if (total - walk) % step.label == 0
    ]
    if not splits:
        raise SettingsError(
            f"--nodes {total}: not to be shared out between jobs of {step.walk} (walk) and {step.label} (label) "
            f"{unit_of(settings)}.",
            "Give more, or another site.walk.nodes_per_block or site.label.nodes_per_block.",
        )
    short = _short(settings, sized(settings, splits[0]).settings.site.label_slots)
    known: dict[int, tuple[float, float]] = {}

    def score(place: int) -> tuple[float, float]:
        """Time, and idle share of the worse kind where times are the same."""
        if place not in known:
            tell(f"{splits[place].walk} + {splits[place].label} {unit_of(settings)}")
            reports = [simulate(one, durations) for one in _seeded(sized(short, splits[place]).settings)]
            busy = [min((one.busy for one in report.workers if one.label in KINDS), default=1.0) for report in reports]
            known[place] = fmean(report.wall_s for report in reports), 1.0 - fmean(busy)
        return known[place]

    best = min(range(len(splits)), key=lambda place: abs(splits[place].walk - _balanced(settings, total, durations)))
    reach = max(1, len(splits) // 4)
    for _ in range(TURNS):
        near = {max(0, best - reach), best, min(len(splits) - 1, best + reach)}
        best = min(sorted(near), key=score)
        reach = max(1, reach // 2)
    return splits[best]


@dataclass(frozen=True, slots=True)
class Saving:
    """What another machine saves, from campaigns that share their random numbers.

    Attributes:
        machine: the other one.
        mean_s: wall time saved, seconds.
        error_s: its standard error.
    """

    machine: Machine
    mean_s: float
    error_s: float

    @property
    def is_chance(self) -> bool:
        """Whether it may as well be none."""
        return abs(self.mean_s) <= CERTAIN * self.error_s


def one_more(settings: CampaignSettings, report: Report, durations: Durations) -> dict[str, Saving]:
    """What one more job of walkers, or of labels, saves; empty on a site with one slot.

    Args:
        settings: of the campaign.
        report: of its simulation.
        durations: of its tasks.
    """
    if isinstance(settings.site, InlineSite):
        return {}
    now, step = machine_of(settings), steps_of(settings)
    walls_s = [report.wall_s, *(simulate(one, durations).wall_s for one in _seeded(settings)[1:])]
    found = {}
    for kind, more in zip(KINDS, (Machine(step.walk, 0), Machine(0, step.label)), strict=True):
        machine = Machine(now.walk + more.walk, now.label + more.label)
        others = _seeded(sized(settings, machine).settings)
        saved = [wall_s - simulate(one, durations).wall_s for wall_s, one in zip(walls_s, others, strict=True)]
        found[kind] = Saving(machine, fmean(saved), stdev(saved) / math.sqrt(len(saved)))
    return found


def _seeded(settings: CampaignSettings) -> list[CampaignSettings]:
    """The campaign with its own random numbers, and with others."""
    return [settings.model_copy(update={"seed": settings.seed + more}) for more in range(SEEDS)]


def _jobs(kind: str, job: Allocation, nodes: int) -> Allocation:
    if nodes % job.nodes_per_block or nodes < 1:
        raise SettingsError(
            f"--{kind}-nodes {nodes}: site.{kind}.nodes_per_block is {job.nodes_per_block}.",
            f"Give a multiple of {job.nodes_per_block}, or change it with --set site.{kind}.nodes_per_block=….",
        )
    blocks = nodes // job.nodes_per_block
    return job.model_copy(update={"max_blocks": blocks, "min_blocks": min(job.min_blocks, blocks)})


def _grown(settings: CampaignSettings) -> Sized:
    """With walkers for every slot."""
    site, walkers, changes = settings.site, settings.walkers, []
    needed = site.walk_slots * walkers.batch
    if walkers.count < needed:
        changes.append(f"walkers.count={needed} (not {walkers.count}): a batch for each of {site.walk_slots} slots")
        settings = settings.model_copy(update={"walkers": walkers.model_copy(update={"count": needed})})
    return Sized(settings, tuple(changes))


def _balanced(settings: CampaignSettings, total: int, durations: Durations) -> float:
    """Units of walkers with which a stream finds as many candidates as its labels take."""
    site, random = settings.site, Random(settings.seed)
    machine, middle = machine_of(settings), settings.labels.budget // 2
    seconds = means(durations, settings)
    worth = 1.0 - fmean(durations.known.draw(random, middle) for _ in range(SAMPLES))
    found = worth * fmean(durations.walk.draw(random, middle).candidates for _ in range(SAMPLES))
    of_walkers = found * site.walk_slots / machine.walk / seconds["walk"]
    of_labels = site.label_slots / machine.label / seconds["label"]
    return total * of_labels / (of_walkers + of_labels) if of_walkers else total


def _short(settings: CampaignSettings, slots: int) -> CampaignSettings:
    """The beginning of a campaign, long enough to tell how it runs with so many slots for labels."""
    enough = max(BEGINNING + settings.labels.initial, min(SHORT * slots, MOST_LABELS), 2 * slots)
    if not isinstance(settings.schedule, StreamingSchedule):
        enough = max(enough, sum(asked for asked, _ in zip(labels_by_round(settings), range(ROUNDS), strict=False)))
    budget = min(settings.labels.budget, enough)
    return settings.model_copy(update={"labels": settings.labels.model_copy(update={"budget": budget})})
