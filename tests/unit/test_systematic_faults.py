"""When labelling pauses: for what hits one label after the other, never for what comes now and then."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_state import label_failed

from pipeline.faults import OF_ALL, REMEDIES, systematic_fault
from pipeline.records import Cause
from pipeline.rows import Rows
from pipeline.settings.labels import RecoverySettings

RULE = RecoverySettings(pause_after=6, pause_share=0.5)


def outcomes(text: str):
    """``n``: not converged, ``t``: time limit, ``m``: missing file, ``o``: another level, ``.``: a good label."""
    causes = {"n": Cause.NOT_CONVERGED, "t": Cause.TIME_LIMIT, "m": Cause.MISSING_FILE, "o": Cause.OTHER_LEVEL}
    rows = [label_failed(1, k, k) if mark in causes else None for k, mark in enumerate(text)]
    for row, mark in zip(rows, text, strict=True):
        if row is not None:
            object.__setattr__(row, "cause", causes[mark])
    return Rows(rows)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("nnnnn", 0),  # below pause_after
        ("nnnnnn", 6),
        ("n.n.n.n.n.n.", 0),  # six of twelve are not more than half
        ("nn.n.n.n.n.n", 7),
        ("......nnnnnn", 0),
        (".....nnnnnnn", 7),
        ("nnnnnnn" + "." * 12, 0),  # the newest twelve are good
        ("ntntntntntnt", 0),  # two causes, each below the rule
        ("mm", 0),
        ("mmm", 3),
        (".mmm", 0),  # a good label: the file is there
        ("ntmmm", 3),
        ("........o", 1),
    ],
)
def test_labelling_pauses_when_the_newest_labels_fail_for_one_cause(text, count):
    fault = systematic_fault(outcomes(text), RULE)
    assert (fault.count if fault else 0) == count
    assert fault is None or (fault.example.cause is fault.cause and fault.example.item == text.rindex(fault.cause[0]))


@given(st.text("nt.", max_size=60), st.integers(1, 20), st.floats(0.05, 1.0))
def test_what_is_named_is_what_was_counted(text, pause_after, pause_share):
    rule = RecoverySettings(pause_after=pause_after, pause_share=pause_share)
    fault = systematic_fault(outcomes(text), rule)
    if fault is not None:
        newest = text[-fault.window :]
        assert newest.count(fault.cause[0]) == fault.count >= pause_after
        assert fault.count > pause_share * len(newest)
    if pause_share == 1.0:
        assert fault is None


def test_every_cause_has_a_remedy():
    assert set(REMEDIES) == set(Cause)
    assert set(REMEDIES) > OF_ALL
