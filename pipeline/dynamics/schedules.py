"""How τ changes in the life of a walker.

Shapes: B walkers. τ and progress have no unit; ages are in MD steps.
"""

import torch
from torch import Tensor

from pipeline.settings.walkers import AdaptiveTau, BiasSettings, ConstantTau, RampTau


def first_tau(settings: BiasSettings) -> float:
    """τ of a new walker."""
    schedule = settings.schedule
    match schedule:
        case AdaptiveTau():
            return min(max(settings.tau, schedule.least), schedule.most)
        case RampTau():
            return schedule.first
        case ConstantTau():
            return settings.tau


def tau_at(settings: BiasSettings, *, tau: Tensor, ages: Tensor, progress: Tensor | None = None) -> Tensor:
    """(B,) float64 τ from here on; on the device of ``tau``, without a transfer.

    Args:
        settings: the schedule, and bias.tau that it starts from or leads to.
        tau: (B,) float64 τ so far.
        ages: (B,) int64 MD steps since the start of each walker.
        progress: (B,) largest atom-based uncertainty over stop.uncertainty_eV_per_A, at stop checks; None between them, where
            only a ramp changes τ. What is not a number changes nothing.
    """
    schedule = settings.schedule
    match schedule:
        case ConstantTau():
            return tau
        case RampTau():
            share = torch.clamp(ages.to(tau.dtype) / schedule.steps, max=1.0)
            return _line(schedule.first, settings.tau, share)
        case AdaptiveTau():
            bounded = torch.clamp(tau, schedule.least, schedule.most)
            if progress is None:
                return bounded
            return _adapted(schedule, first_tau(settings), bounded, ages.to(tau.dtype), progress.to(tau.dtype))


def _adapted(schedule: AdaptiveTau, first: float, tau: Tensor, ages: Tensor, progress: Tensor) -> Tensor:
    """Two lines start from the first τ at age 0: one reaches ``most`` at steps / 2, the other ``least``; both stay there.

    A late walker has at least the τ of the upper line. Hence one that is late at a check has ``most`` from steps / 2 on, no
    matter how often it is looked at. One that is early comes down to the lower line, all the way where it has come twice as
    far as its age asks for, in proportion where less: about on time, τ stays about what it is. While it is young both lines
    are near the first τ, so what a start structure says by chance does little.
    """
    due = ages / schedule.steps
    share = torch.clamp(2.0 * due, max=1.0)
    upper, lower = _line(first, schedule.most, share), _line(first, schedule.least, share)
    # at age 0 nothing is due and any progress is early
    excess = torch.clamp(progress / due - 1.0, max=1.0)
    raised = torch.maximum(tau, upper)
    lowered = tau + excess * (torch.minimum(tau, lower) - tau)
    changed = torch.where(progress < due, raised, torch.where(progress > due, lowered, tau))
    return torch.clamp(changed, schedule.least, schedule.most)


def _line(start: float, end: float, share: Tensor) -> Tensor:
    """From ``start`` at share 0 to ``end`` at share 1, exactly."""
    return torch.lerp(torch.full_like(share, start), torch.full_like(share, end), share)
