"""A campaign of seconds: four copper atoms, effective-medium theory, a tiny network. Also a driver that can be killed.

``python small_campaign.py DIRECTORY [inline|local_threads|local_htex] [CALCULATOR]``
"""

import os
import sys
from pathlib import Path

from ase.build import bulk

from apps.steps import open_steps
from pipeline.campaign import Campaign, Outcome
from pipeline.frames import Frame
from pipeline.settings.campaign import CampaignSettings

HERE = Path(__file__).parent


def settings(site: str = "inline", calculator: str | None = None, schedule: object = "rounds") -> CampaignSettings:
    """The campaign; ``calculator`` replaces EMT by an import path."""
    reference = {"kind": "ase", "calculator": calculator} if calculator else {"kind": "emt"}
    slots = {} if site == "inline" else {"walk_slots": 2, "label_slots": 2}
    return CampaignSettings.model_validate(
        {
            "name": "small",
            "seed": 5,
            "systems": [{"name": "copper", "structures": ["unused.xyz"]}],
            "potential": {"cutoff_A": 3.5, "channels": 2, "gaussians": 4, "hidden": [16, 16]},
            "walkers": {
                "count": 4,
                "batch": 2,
                "segment_steps": 40,
                "store_every": 10,
                "timestep_fs": 2.0,
                "temperatures_K": [300.0, 900.0],
                "stop": {"isolation_A": 3.5, "uncertainty_eV_per_A": 15.0},
            },
            "labels": {"reference": reference, "budget": 32, "initial": 8, "initial_rattle_A": 0.1},
            "selection": {"batch": 8},
            "training": {"epochs": 6, "warm_epochs": 4, "gate": {"walkers": 2, "steps": 10}},
            "schedule": schedule,
            "site": {"kind": site, **slots},
        }
    )


def systems() -> dict[str, tuple[Frame, ...]]:
    """One cubic cell of copper."""
    return {"copper": (Frame.from_atoms(bulk("Cu", "fcc", a=3.61, cubic=True), system="copper"),)}


def run(directory: Path, chosen: CampaignSettings) -> Outcome:
    """Begin or go on with it."""
    campaign = Campaign.create_or_open(chosen, systems(), directory)
    with open_steps(chosen.site, campaign.store.runinfo) as steps:
        return campaign.run(steps)


def run_in_own_group(directory: Path, chosen: CampaignSettings, count_log: str) -> None:
    """The same in a process group of its own, so that a signal reaches the driver and its workers alone."""
    os.setsid()
    os.environ.update(COUNT_LOG=count_log, PYTHONPATH=os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    run(directory, chosen)


if __name__ == "__main__":
    where, site, *rest = sys.argv[1:]
    run(Path(where), settings(site, *rest))
