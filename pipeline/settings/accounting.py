"""Whether what a stop rule limits is counted on a site at all."""

from pipeline.settings.site import LocalHTEXSite, Site, SlurmSite
from pipeline.settings.stopping import StopRule


def counts_gpus(site: Site) -> bool:
    """Whether walkers, selection or training hold GPUs that the site knows of."""
    if isinstance(site, SlurmSite):
        return any(site.allocations[site.routes[kind]].gpus_per_node for kind in ("walk", "select", "train"))
    return isinstance(site, LocalHTEXSite) and site.gpus > 0


def limit_problems(stop: StopRule, site: Site) -> list[str]:
    """Limits that would never be reached, since nothing is counted."""
    if stop.max_gpu_h is None or counts_gpus(site):
        return []
    if isinstance(site, SlurmSite):
        why, remedy = "site.walk.gpus_per_node is 0", "give site.walk.gpus_per_node"
    elif isinstance(site, LocalHTEXSite):
        why, remedy = "site.gpus is 0", "give site.gpus"
    else:
        why, remedy = f"site.kind {site.kind} counts no GPU", "give site.gpus with site.kind local_htex"
    return [
        f"stop.max_gpu_h is {stop.max_gpu_h:g} but {why}: it would never be reached; {remedy}, or leave stop.max_gpu_h out"
    ]
