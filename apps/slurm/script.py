"""The batch script of the driver's job. It lies in the campaign directory, for people to read and to submit by hand."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from apps.slurm.names import DRIVER, job_name
from pipeline.settings.site import SlurmSite
from pipeline.settings.site_files import anchored
from site_configs.slurm_script import asked_options, output_path

SCRIPT, OUTPUT = "driver.sh", "driver.out"
"""Names in the campaign directory."""


def driver_script(
    site: SlurmSite,
    prefix: str,
    *,
    campaign: Path,
    place: Path,
    chosen: str | None = None,
    overrides: Sequence[str] = (),
) -> str:
    """Text of the script.

    Args:
        site: with the driver's job.
        prefix: of the names of the campaign's jobs.
        campaign: the campaign file.
        place: the campaign directory.
        chosen: the site file of the command line, by name or path.
        overrides: settings changed on the command line.
    """
    command = [
        sys.executable,
        "-u",
        "-P",
        "-m",
        "apps.cli",
        "run",
        str(campaign.absolute()),
        "--dir",
        str(place.absolute()),
    ]
    command += ["--site", anchored(chosen)] if chosen else []
    command += [word for text in overrides for word in ("--set", text)]
    init = [text for text in (site.worker_init, site.driver.worker_init) if text]
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in _options(site, prefix, place)),
        "",
        f"# The driver of one campaign, written by `farwalk submit` for {_comment(campaign)}",
        "# how many drivers before this one got nowhere; files that worker_init sources must not see it",
        'farwalk_fruitless="${1:-0}"',
        "set --",
        *init,
        "# exec: signals reach farwalk itself",
        f'exec {shlex.join(command)} --as-job "$farwalk_fruitless"',
        "",
    ]
    return "\n".join(lines)


def _options(site: SlurmSite, prefix: str, place: Path) -> list[str]:
    job = site.driver
    size = {
        "nodes": 1,
        "ntasks": 1,
        "cpus-per-task": job.cores,
        "mem": job.memory_GB and f"{job.memory_GB}G",
    }
    # after the user's own, which must not change how a driver is found, stopped and started again
    return [
        *asked_options(job, site, size),
        *job.scheduler_options,
        f"--job-name={shlex.quote(job_name(prefix, DRIVER))}",
        f"--output={output_path(str(place.absolute() / OUTPUT))}",
        "--open-mode=append",
        f"--signal=B:TERM@{job.stop_before}",
        "--requeue",
        "--dependency=singleton",
    ]


def _comment(path: Path) -> str:
    return str(path.absolute()).replace("\n", " ")
