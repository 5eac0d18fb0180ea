"""What a person should hear of bounds that do not hold as promised."""

from pipeline.records import GroupCoverage, Remark, Scores
from pipeline.uncertainty.points import ALL

_TOO_NARROW = (
    "The bounds of the next model are widened by what these labels showed. Should it stay, raise labels.splits.calibration "
    "(more labels to calibrate on) or lower selection.batch (a new model before walkers are far from what it knows)."
)
_TOO_WIDE = (
    "The model is better than it says: walks end earlier than they must and more labels are asked for. Should it stay, raise "
    "labels.splits.calibration, and the limits of uncertainty in walkers.stop."
)


def coverage_alarms(version: int, fresh: Scores | None) -> list[Remark]:
    """One for each group of labels whose bounds held more or less often than chance explains.

    Args:
        version: of the model that made the bounds.
        fresh: its scores on labels that came later.
    """
    if fresh is None:
        return []
    off = [group for group in fresh.groups if group.is_off]
    # the only system or element is all there is: said once
    names = {quantity: [g.group for g in fresh.groups if g.quantity == quantity] for quantity in ("total", "atomic")}
    return [_alarm(version, group) for group in off if group.group == ALL or len(names[group.quantity]) > 2]


def _alarm(version: int, found: GroupCoverage) -> Remark:
    what = "energy" if found.quantity == "total" else "force"
    of = "" if found.group == ALL else f" of {'system' if found.quantity == 'total' else 'element'} {found.group}"
    text = (
        f"model v{version:04d}: {_percent(found.share)} % of {found.count} {what} bounds held on later labels{of}, "
        f"chance explains {_percent(found.low)} to {_percent(found.high)} %"
    )
    return Remark(text=text, remedy=_TOO_NARROW if found.share < found.low else _TOO_WIDE)


def _percent(share: float) -> str:
    return f"{100.0 * share:.1f}".removesuffix(".0")
