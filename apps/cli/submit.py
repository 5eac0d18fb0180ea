"""``farwalk submit CAMPAIGN.yaml``: the driver as a SLURM job, which hands over to the next one until the campaign ends."""

import shlex

from apps.cli.console import OUT, duration
from apps.cli.options import SITES, CampaignDirectory, CampaignFile, Overrides, SiteOption
from apps.cli.places import campaign_directory, check_writable
from apps.slurm.client import submit_job
from apps.slurm.names import job_prefix
from apps.slurm.script import OUTPUT, SCRIPT, driver_script
from apps.slurm.workers import refuse_other_driver
from pipeline.campaign import Campaign
from pipeline.durable import write_text_durably
from pipeline.errors import SettingsError, StoreError
from pipeline.intake import open_campaign
from pipeline.lock import holder_of
from pipeline.settings.site import SlurmSite


def submit(
    campaign: CampaignFile,
    directory: CampaignDirectory = None,
    chosen: SiteOption = None,
    overrides: Overrides = None,
) -> None:
    """Run a campaign from a SLURM job of its own; it is submitted anew before its wall time, until the campaign ends."""
    intake = open_campaign(campaign, overrides or (), chosen, SITES)
    site = intake.settings.site
    if not isinstance(site, SlurmSite):
        raise SettingsError(
            f"{campaign}: site.kind is {site.kind}, which has no queue.", "Use `farwalk run`, or a site of kind slurm."
        )
    place = campaign_directory(intake, directory)
    check_writable(place)
    if holder := holder_of(place / "lock"):
        raise StoreError(
            f"{place}: a driver runs this campaign ({holder}).",
            f"Watch it with `farwalk status {place}`, or end it with `farwalk stop {place}`.",
        )
    prefix = job_prefix(place)
    refuse_other_driver(prefix)
    Campaign.create_or_open(intake.settings, intake.frames, place)
    script = driver_script(site, prefix, campaign=campaign, place=place, chosen=chosen, overrides=overrides or ())
    write_text_durably(place / SCRIPT, script)
    number = submit_job(place / SCRIPT)
    where = shlex.quote(str(place))
    OUT.print(f"submitted the driver as job {number}; it writes to {place / OUTPUT}", markup=False)
    OUT.print(f"it hands over to a new job after {duration(site.driver.walltime - site.driver.stop_before)}")
    OUT.print(f"next: farwalk status {where}, farwalk jobs {where}, farwalk stop {where}", markup=False)
