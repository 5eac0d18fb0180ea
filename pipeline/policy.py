"""What to do next: a pure function of what a campaign knows. The schedules are in ``rounds`` and ``streaming``."""

from collections.abc import Set

from pipeline.decisions import Decision, End
from pipeline.ending import spent_resources
from pipeline.events import EndReason
from pipeline.faults import REMEDIES, systematic_fault
from pipeline.rounds import BARRIER, next_of_round
from pipeline.settings.campaign import CampaignSettings
from pipeline.state import CampaignState
from pipeline.streaming import next_of_stream


def decide(
    state: CampaignState, settings: CampaignSettings, *, now: float, in_flight: Set[str] = frozenset()
) -> Decision:
    """The next step of a campaign.

    Args:
        state: what is known.
        settings: the settings in force.
        now: seconds since the epoch.
        in_flight: names of tasks handed out by this driver and not finished. A stream knows them from its events.
    """
    if state.failure is not None:
        message = f"{state.failure.task} failed: {state.failure.reason}"
        return Decision(end=End(EndReason.TASK_FAILED, message, state.failure.remedy))
    if (pause := _pause(state, settings)) is not None:
        return Decision(end=pause)
    if (spent := spent_resources(state, settings, now)) is not None:
        return Decision(end=spent)
    if state.flow is not None:
        return next_of_stream(state, state.flow, settings, now)
    decision = next_of_round(state, settings, len(in_flight))
    return Decision(
        requests=tuple(request for request in decision.requests if request.name not in in_flight),
        gather=decision.gather,
        end=decision.end,
        idle=BARRIER,
    )


def _pause(state: CampaignState, settings: CampaignSettings) -> End | None:
    """Why no further labels are asked for, until a person acted."""
    fault = systematic_fault(state.recent, settings.labels.recovery)
    if fault is None:
        return None
    message = (
        f"labelling is paused: {fault.count} of the last {fault.window} labels failed for one cause, {fault.cause.value}; "
        f"the last one because {fault.example.reason}"
    )
    return End(EndReason.LABELS_PAUSED, message, REMEDIES[fault.cause], fault.example.scratch)
