"""The campaign file as a whole."""

import math
from typing import Self

from pydantic import Field, NonNegativeInt, model_validator
from scipy.stats import chi2

from pipeline.settings.accounting import limit_problems
from pipeline.settings.dft import ElectronicSettings
from pipeline.settings.labels import LabelSettings
from pipeline.settings.model import Settings
from pipeline.settings.potential import PotentialSettings
from pipeline.settings.schedule import RoundsSchedule, Schedule, StreamingSchedule
from pipeline.settings.selection import SelectionSettings
from pipeline.settings.site import LocalHTEXSite, Site, SlurmSite
from pipeline.settings.stopping import StopRule
from pipeline.settings.systems import SystemSettings
from pipeline.settings.training import TrainingSettings
from pipeline.settings.uncertainty import FeatureUncertaintySettings, UncertaintySettings
from pipeline.settings.variables import Variable
from pipeline.settings.walkers import AdaptiveTau, ConstantTau, WalkerSettings

DIHEDRAL_WIDTHS_DEG = (1.0, 90.0)
"""A hill along a dihedral is wider than a number in radians would be, and does not reach around the turn."""
USUAL_TARGET_EV_PER_A = 0.1
"""Force error of a model that is good enough, where no target is set, eV/Å."""
LEAST_DRAIN_S = 180
"""A label needs so much of its job: for a worker that starts late, its program, and what follows that."""


class CampaignSettings(Settings):
    """``campaign.yaml``."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="name of the campaign")
    seed: NonNegativeInt = Field(description="seed of every random number of the campaign")
    systems: tuple[SystemSettings, ...] = Field(min_length=1, description="systems and their start structures")
    potential: PotentialSettings = Field(default_factory=PotentialSettings, description="machine-learned potential")
    uncertainty: UncertaintySettings = Field(
        default_factory=FeatureUncertaintySettings, discriminator="kind", description="uncertainty of the potential"
    )
    walkers: WalkerSettings = Field(default_factory=WalkerSettings, description="biased MD walkers")
    selection: SelectionSettings = Field(default_factory=SelectionSettings, description="batch selection")
    labels: LabelSettings = Field(description="reference calculations")
    training: TrainingSettings = Field(default_factory=TrainingSettings, description="training")
    stop: StopRule = Field(default_factory=StopRule, description="stop rule")
    schedule: Schedule = Field(
        default_factory=RoundsSchedule,
        description="rounds with a barrier, or streaming without; the name alone will do",
    )
    site: Site = Field(default_factory=LocalHTEXSite, description="where tasks run")

    @property
    def known_eV_per_A(self) -> float | None:
        """A candidate whose bound on every atom's force error is below this needs no label, eV/Å; None: each may have one."""
        if self.selection.known_eV_per_A is not None:
            return self.selection.known_eV_per_A
        if not isinstance(self.schedule, StreamingSchedule):
            return None
        target = self.stop.target_force_eV_per_A or USUAL_TARGET_EV_PER_A
        return float(target * math.sqrt(chi2.ppf(1.0 - self.uncertainty.alpha, 3)))

    @property
    def shares(self) -> dict[str, float]:
        """Shares of the systems in walkers and labels that sum up to 1; empty where uncertainty decides."""
        given = {system.name: system.share for system in self.systems if system.share is not None}
        total = sum(given.values())
        return {name: share / total for name, share in given.items()}

    @property
    def hill_variables(self) -> dict[str, tuple[Variable, ...]]:
        """Of each system the variables that metadynamics puts hills along, in the order of its widths; empty without."""
        hills = self.walkers.metadynamics
        if hills is None:
            return {}
        named = {system.name: {variable.name: variable for variable in system.variables} for system in self.systems}
        return {system: tuple(variables[name] for name in hills.variables) for system, variables in named.items()}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = []
        names = [system.name for system in self.systems]
        if len(set(names)) < len(names):
            problems.append(f"systems: two systems share a name in {names}; give each its own")
        committee = self.uncertainty.kind == "committee"
        if committee and self.potential.members < 2:
            problems.append(
                f"potential.members is {self.potential.members} but uncertainty.kind is committee; "
                "set potential.members to 2 or more"
            )
        if not committee and self.potential.members > 1:
            problems.append(
                f"potential.members is {self.potential.members} but uncertainty.kind is {self.uncertainty.kind}; "
                "set it to 1 or use kind: committee"
            )
        if committee and self.walkers.bias.quantity == "atomic" and self.walkers.bias.may_act:
            problems.append(
                "walkers.bias.quantity is atomic but uncertainty.kind is committee, whose atom-based uncertainty has no "
                "gradient; use quantity: total"
            )
        if self.labels.initial > self.labels.budget:
            problems.append(
                f"labels.initial ({self.labels.initial}) exceeds labels.budget ({self.labels.budget}); raise the budget"
            )
        if self.labels.initial < 4:
            problems.append(
                f"labels.initial is {self.labels.initial}; training, validation and calibration need at least 4"
            )
        if self.walkers.count % self.walkers.batch:
            problems.append(
                f"walkers.count ({self.walkers.count}) is not a multiple of walkers.batch ({self.walkers.batch})"
            )
        if self.walkers.stop.isolation_A > self.potential.cutoff_A:
            problems.append(
                f"walkers.stop.isolation_A ({self.walkers.stop.isolation_A}) exceeds potential.cutoff_A "
                f"({self.potential.cutoff_A}); lower it"
            )
        with_share = [system.name for system in self.systems if system.share is not None]
        if 0 < len(with_share) < len(names):
            without = next(name for name in names if name not in with_share)
            problems.append(
                f"systems: {with_share[0]} has a share and {without} has none; give one to each, or to none"
            )
        if self.stop.coverage is not None and not any(system.variables for system in self.systems):
            problems.append(
                "stop.coverage is set but no system has variables whose coverage could grow; give systems[].variables, or "
                "leave stop.coverage out"
            )
        problems += self._cell_problems()
        problems += self._schedule_problems()
        problems += self._metadynamics_problems()
        problems += self._idle_problems()
        problems += self._time_problems()
        problems += limit_problems(self.stop, self.site)
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _cell_problems(self) -> list[str]:
        """Conditions that nobody would walk at, and what only makes sense where the cell moves."""
        walkers = self.walkers
        problems = []
        conditions = len(walkers.temperatures_K) * len(walkers.pressures_MPa)
        if walkers.count < conditions:
            problems.append(
                f"walkers.count ({walkers.count}) is less than the {conditions} conditions of temperatures_K and "
                "pressures_MPa: some would never be walked at; raise it or remove some"
            )
        if walkers.barostat is not None:
            return problems
        if any(walkers.pressures_MPa):
            problems.append(
                f"walkers.pressures_MPa is {list(walkers.pressures_MPa)} but the cell does not move; set walkers.barostat"
            )
        if walkers.bias.tau_stress > 0:
            problems.append(
                f"walkers.bias.tau_stress is {walkers.bias.tau_stress:g} but the cell does not move; set walkers.barostat"
            )
        return problems

    def _schedule_problems(self) -> list[str]:
        """Whether an adaptive τ has room, and starts in it."""
        bias = self.walkers.bias
        schedule = bias.schedule
        if not isinstance(schedule, AdaptiveTau):
            return []
        least, most = schedule.least, schedule.most
        if not least < most:
            return [
                f"walkers.bias.schedule.least ({least:g}) is not below walkers.bias.schedule.most ({most:g}); lower least or "
                "use kind: constant"
            ]
        if not least <= bias.tau <= most:
            return [
                f"walkers.bias.tau ({bias.tau:g}), which walkers start from, is not between walkers.bias.schedule.least "
                f"({least:g}) and most ({most:g}); change one of them"
            ]
        return []

    def _metadynamics_problems(self) -> list[str]:
        """Whether every system has the variables that hills are put along, and hills have a place and a shape."""
        hills = self.walkers.metadynamics
        if hills is None:
            return []
        problems = []
        if len(hills.widths) != len(hills.variables):
            problems.append(
                f"walkers.metadynamics.widths has {len(hills.widths)} numbers for {len(hills.variables)} variables; "
                "give one for each"
            )
        if len(set(hills.variables)) < len(hills.variables):
            problems.append(f"walkers.metadynamics.variables names one twice: {list(hills.variables)}; name each once")
        if hills.every % self.walkers.stop.check_every:
            problems.append(
                f"walkers.metadynamics.every ({hills.every}) is not a multiple of walkers.stop.check_every "
                f"({self.walkers.stop.check_every}); change one of them"
            )
        for system in self.systems:
            known = [variable.name for variable in system.variables]
            problems += [
                f"walkers.metadynamics.variables: system {system.name} has no variable {name!r} (it has {known}); "
                "add it to its variables"
                for name in hills.variables
                if name not in known
            ]
        for name, width in zip(hills.variables, hills.widths, strict=False):
            problems += self._hill_problems(name, width)
        return problems

    def _idle_problems(self) -> list[str]:
        """What comes so late that it never, or hardly ever, happens."""
        walkers, bias = self.walkers, self.walkers.bias
        life = ("walkers.max_steps", walkers.max_steps, "a walker is replaced before")
        pairs = [("walkers.store_every", walkers.store_every, *life)]
        if walkers.metadynamics is not None:
            pairs.append(("walkers.metadynamics.every", walkers.metadynamics.every, *life))
        if not isinstance(bias.schedule, ConstantTau):
            pairs.append(("walkers.bias.schedule.steps", bias.schedule.steps, *life))
        sample = ("walkers.bias.update_every", bias.update_every)
        empty = "the average would be of one sample from a longer time"
        if bias.may_act:
            pairs.append((*sample, "walkers.bias.window_steps", bias.window_steps, empty))
        if bias.tau_stress > 0:
            pairs.append((*sample, "walkers.bias.stress_window_steps", bias.stress_window_steps, empty))
        return [
            f"{key} ({steps}) exceeds {other} ({limit}): {why}; lower {key} or raise {other}"
            for key, steps, other, limit, why in pairs
            if steps > limit
        ]

    def _hill_problems(self, name: str, width: float) -> list[str]:
        """What speaks against hills of this width along this variable."""
        kinds = {
            variable.kind: system.name
            for system in self.systems
            for variable in system.variables
            if variable.name == name
        }
        if len(kinds) > 1:
            text = ", ".join(f"a {kind} in {system}" for kind, system in kinds.items())
            return [
                f"walkers.metadynamics.variables: {name!r} is {text}, but its hills have one width; rename one of them"
            ]
        if "volume" in kinds and self.walkers.barostat is None:
            return [
                f"walkers.metadynamics.variables: {name!r} is the volume, but the cell does not move; set walkers.barostat"
            ]
        low, high = DIHEDRAL_WIDTHS_DEG if "dihedral" in kinds else (0.0, math.inf)
        if not (low <= width <= high and width > 0):
            fit = f"between {low:g} and {high:g} degrees" if "dihedral" in kinds else "above 0"
            return [f"walkers.metadynamics.widths: {width:g} for {name!r} is not {fit}; give the width of a hill"]
        return []

    def _time_problems(self) -> list[str]:
        """Whether one try of a label can end before the job it runs in does."""
        if not isinstance(self.site, SlurmSite) or not isinstance(self.labels.reference, ElectronicSettings):
            return []
        limit_s, job = self.site.label_launch.limit_s, self.site.label
        if limit_s >= job.walltime:
            return [
                f"site.launch.time_limit ({limit_s} s) does not fit into site.label.walltime ({job.walltime} s); "
                "lower it or raise walltime and drain"
            ]
        if job.drain_s < LEAST_DRAIN_S:
            return [
                f"site.label.drain ({job.drain_s} s) is below {LEAST_DRAIN_S} s: no reference calculation could begin so late "
                "in a job; raise it, or walltime where drain is not set"
            ]
        if limit_s > job.drain_s:
            return [
                f"site.launch.time_limit ({limit_s} s) exceeds site.label.drain ({job.drain_s} s): a label begun that late "
                "would be cut by the end of its job; lower it or raise drain"
            ]
        return []
