"""The recovery ladder: always an end, never the same twice, and only what helps."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import Cause, Limits, Measure, Try
from pipeline.references import CalculationFailed, Properties
from pipeline.references.checks import check_label, voigt
from pipeline.references.recovery import GOES_ON, LADDER, Plan, next_plan
from pipeline.settings.launch import LaunchSettings

ALL = frozenset(Measure)
CAUSES = st.sampled_from(list(Cause))


def tried(plan: Plan, cause: Cause, number: int) -> Try:
    return Try(cause=cause, reason="", measures=plan.measures, wall_s=1.0, core_s=1.0, directory=f"try-{number}")


def plans(causes: list[Cause], *, can=ALL, launch=None, ranks: int = 8, max_tries: int = 100) -> list[Plan]:
    """What is tried when the tries fail for these causes, in this order."""
    launch = launch or LaunchSettings()
    tries: list[Try] = []
    found: list[Plan] = []
    for number, cause in enumerate([*causes, Cause.UNKNOWN], 1):
        plan = next_plan(tries, can=can, launch=launch, ranks=ranks, max_tries=max_tries)
        if plan is None:
            break
        found.append(plan)
        tries.append(tried(plan, cause, number))
    return found


def last_measures(cause: Cause, **options) -> list[Measure]:
    """What is tried one after another when every try fails for one cause."""
    found = plans([cause] * 20, **options)
    assert found[0].measures == ()
    for before, after in itertools.pairwise(found):
        assert after.measures[:-1] == before.measures
    return [plan.measures[-1] for plan in found[1:]]


@given(
    causes=st.lists(CAUSES, max_size=40),
    can=st.frozensets(st.sampled_from(list(Measure))),
    memory_GB=st.one_of(st.none(), st.floats(0.5, 64.0)),
    ranks=st.integers(1, 300),
    nodes=st.integers(1, 4),
    max_tries=st.integers(1, 12),
)
def test_whatever_happens_a_label_ends_and_no_try_is_made_twice(causes, can, memory_GB, ranks, nodes, max_tries):
    launch = LaunchSettings(memory_GB=memory_GB, nodes=nodes)
    found = plans(causes, can=can, launch=launch, ranks=max(ranks, nodes), max_tries=max_tries)
    assert 1 <= len(found) <= min(max_tries, len(causes) + 1)
    assert len({tuple(sorted(plan.measures)) for plan in found}) == len(found)
    physical = {(plan.ranks, plan.memory_GB, plan.time_s, frozenset(plan.measures)) for plan in found}
    assert len(physical) == len(found)
    for plan, cause in zip(found[1:], causes, strict=False):
        assert can.issuperset(plan.measures)
        assert plan.measures[-1] in LADDER[cause]
        assert plan.ranks >= nodes
        assert plan.time_s <= 4 * launch.limit_s
        assert bool(plan.previous) == (plan.measures[-1] in GOES_ON)


@given(causes=st.lists(CAUSES, min_size=60, max_size=60))
def test_without_a_limit_of_tries_the_ladder_itself_ends(causes):
    assert len(plans(causes, launch=LaunchSettings(memory_GB=1.0), max_tries=1000)) <= 16


def test_each_cause_has_its_measures_in_their_order():
    assert last_measures(Cause.NOT_CONVERGED) == [
        Measure.MORE_STEPS,
        Measure.GENTLE_MIXING,
        Measure.OTHER_SOLVER,
        Measure.SMEARED_START,
    ]
    assert last_measures(Cause.TIME_LIMIT) == [Measure.MORE_TIME] * 2
    assert last_measures(Cause.OUT_OF_MEMORY, launch=LaunchSettings(memory_GB=1)) == [Measure.MORE_MEMORY] * 2
    assert last_measures(Cause.OUT_OF_MEMORY, ranks=8) == [Measure.FEWER_RANKS] * 3
    assert last_measures(Cause.CRASH, ranks=2) == [Measure.FRESH_START, Measure.FEWER_RANKS]
    assert last_measures(Cause.CRASH, ranks=1) == [Measure.FRESH_START]
    capped = LaunchSettings(memory_GB=1)
    assert last_measures(Cause.CRASH, ranks=1, launch=capped) == [Measure.FRESH_START, *[Measure.MORE_MEMORY] * 2]
    assert last_measures(Cause.BAD_OUTPUT) == [Measure.FRESH_START]
    assert last_measures(Cause.IMPLAUSIBLE) == [Measure.FRESH_START, Measure.OTHER_SOLVER]


@pytest.mark.parametrize("cause", [cause for cause in Cause if cause not in LADDER])
def test_what_would_only_happen_again_is_tried_once(cause):
    assert last_measures(cause) == []


def test_a_reference_is_asked_only_for_what_it_can_do():
    assert last_measures(Cause.NOT_CONVERGED, can={Measure.OTHER_SOLVER}) == [Measure.OTHER_SOLVER]
    for cause in Cause:
        assert last_measures(cause, can=frozenset()) == []


def test_time_and_memory_double_and_ranks_halve():
    launch = LaunchSettings(memory_GB=3, time_limit=100)
    assert [plan.time_s for plan in plans([Cause.TIME_LIMIT] * 3, launch=launch)] == [100, 200, 400]
    assert [plan.memory_GB for plan in plans([Cause.OUT_OF_MEMORY] * 3, launch=launch)] == [3, 6, 12]
    assert [plan.ranks for plan in plans([Cause.OUT_OF_MEMORY] * 4, ranks=6)] == [6, 3, 1]
    nodes = LaunchSettings(nodes=2)
    assert [plan.ranks for plan in plans([Cause.OUT_OF_MEMORY] * 4, launch=nodes, ranks=8)] == [8, 4, 2]


def test_what_helped_against_one_cause_stays_when_another_comes():
    found = plans([Cause.TIME_LIMIT, Cause.NOT_CONVERGED, Cause.TIME_LIMIT, Cause.NOT_CONVERGED])
    assert [plan.measures for plan in found] == [
        (),
        (Measure.MORE_TIME,),
        (Measure.MORE_TIME, Measure.MORE_STEPS),
        (Measure.MORE_TIME, Measure.MORE_STEPS, Measure.MORE_TIME),
        (Measure.MORE_TIME, Measure.MORE_STEPS, Measure.MORE_TIME, Measure.GENTLE_MIXING),
    ]
    assert [plan.previous for plan in found] == ["", "try-1", "try-2", "try-3", ""]


def test_a_nearby_label_is_no_start_once_the_scf_did_not_converge_from_it():
    assert [plan.guess for plan in plans([Cause.TIME_LIMIT, Cause.NOT_CONVERGED, Cause.TIME_LIMIT])] == [
        True,
        True,
        False,
        False,
    ]


def properties(**changes) -> Properties:
    values = {"energy": 1.0, "forces": np.array([[1.0, 0, 0], [-1.0, 0, 0]]), "stress": None}
    return Properties(**{**values, **changes})


def cause_of(found: Properties, limits: Limits = Limits(), n_atoms: int = 2) -> tuple[Cause, str]:  # noqa: B008
    with pytest.raises(CalculationFailed) as caught:
        check_label(found, n_atoms, limits)
    return caught.value.cause, caught.value.reason


def test_a_good_label_is_taken():
    full = properties(stress=np.zeros(6), charges=np.zeros(2), magnetic_moments=np.zeros(2))
    check_label(full, 2, Limits(max_force_eV_per_A=2.0, max_net_force_eV_per_A=1e-6, energy_eV=(0.0, 2.0)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"energy": np.nan}, "energy"),
        ({"forces": np.full((2, 3), np.inf)}, "forces"),
        ({"forces": np.zeros((3, 3))}, "shape"),
        ({"stress": np.full(6, np.nan)}, "stress"),
        ({"stress": np.zeros((3, 3))}, "shape"),
        ({"charges": np.zeros(3)}, "charges"),
        ({"magnetic_moments": np.array([0.0, np.nan])}, "magnetic moments"),
    ],
)
def test_what_is_not_finite_or_of_another_structure_is_bad_output(changes, words):
    cause, reason = cause_of(properties(**changes))
    assert cause is Cause.BAD_OUTPUT
    assert words in reason


def test_numbers_without_sense_are_implausible_and_the_message_names_key_and_value():
    assert cause_of(properties(), Limits(max_force_eV_per_A=0.5)) == (
        Cause.IMPLAUSIBLE,
        "a force of 1 eV/Å exceeds labels.max_force_eV_per_A (0.5)",
    )
    cause, reason = cause_of(properties(forces=np.full((2, 3), 0.1)), Limits(max_net_force_eV_per_A=0.02))
    assert cause is Cause.IMPLAUSIBLE
    assert "0.245" in reason
    assert "labels.max_net_force_eV_per_A" in reason
    cause, reason = cause_of(properties(), Limits(energy_eV=(-3.0, 0.5)))
    assert cause is Cause.IMPLAUSIBLE
    assert "1.0000 eV is outside of -3.0000 to 0.5000 eV" in reason


def test_the_limit_of_the_net_force_is_for_noise_that_is_random_from_atom_to_atom():
    for n_atoms in (1, 64, 4096):  # such noise adds up to its size on one atom times the root of their number
        forces = np.zeros((n_atoms, 3))
        forces[0, 0] = 0.1 * n_atoms**0.5
        check_label(properties(forces=forces), n_atoms, Limits(max_net_force_eV_per_A=0.11))
        with pytest.raises(CalculationFailed, match=r"labels\.max_net_force_eV_per_A"):
            check_label(properties(forces=forces), n_atoms, Limits(max_net_force_eV_per_A=0.09))


@pytest.mark.parametrize(
    ("limits", "final"),
    [
        (Limits(max_net_force_eV_per_A=0.1), True),
        (Limits(max_net_force_eV_per_A=0.1, energy_eV=(-3.0, 0.5)), False),
        (Limits(max_net_force_eV_per_A=0.1, max_force_eV_per_A=0.1), False),
    ],
)
def test_a_net_force_alone_ends_the_ladder(limits, final):
    with pytest.raises(CalculationFailed) as caught:
        check_label(properties(forces=np.array([[1.0, 0, 0], [0, 0, 0]])), 2, limits)
    assert caught.value.cause is Cause.IMPLAUSIBLE
    assert caught.value.final == final


def test_stress_is_six_components_of_a_symmetric_matrix():
    matrix = np.array([[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]])
    np.testing.assert_array_equal(voigt(matrix), [1, 2, 3, 4, 5, 6])
    matrix[0, 1] += 0.1
    with pytest.raises(CalculationFailed, match="not symmetric"):
        voigt(matrix)
    with pytest.raises(CalculationFailed, match="no matrix"):
        voigt(np.full((3, 3), np.nan))
