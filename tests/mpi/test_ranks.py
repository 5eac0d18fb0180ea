"""Several ranks come to the result of one process."""

import sys

import numpy as np
import pytest
import torch
from rank_cases import CASES

from pipeline.ranks import ALONE

pytestmark = pytest.mark.parametrize("ranks", [2, 3])


@pytest.fixture(scope="module")
def alone():
    """What one process finds."""
    torch.set_num_threads(1)
    found = {case: compute(ALONE) for case, compute in CASES.items()}
    assert "mpi4py" not in sys.modules
    return found


def test_all_methods_pick_the_same_candidates_on_every_rank_as_one_process(alone, on_ranks, ranks):
    assert [found["picks"] for found in on_ranks(ranks)] == [alone["picks"]] * ranks
    assert len(alone["picks"]["maxdet 400 61"]) == 40


def test_the_same_structures_are_found_to_be_there_already(alone, on_ranks, ranks):
    assert [found["same"] for found in on_ranks(ranks)] == [alone["same"]] * ranks
    assert len(alone["same"]["300 0.02"]) > 30 > len(alone["same"]["300 0.0"]) > 0


def test_losses_and_weights_are_those_of_one_process_up_to_rounding(alone, on_ranks, ranks):
    found = [one["curves"] for one in on_ranks(ranks)]
    for case, expected in alone["curves"].items():
        assert all(one[case] == found[0][case] for one in found), "ranks differ"
        # sums of gradients in another order, and Adam, which scales the smallest ones up
        rtol = 1e-12 if "64" in case else 1e-5
        np.testing.assert_allclose(found[0][case]["loss"], expected["loss"], rtol=rtol, err_msg=case)
        np.testing.assert_allclose(found[0][case]["score"], expected["score"], rtol=rtol, err_msg=case)
        np.testing.assert_allclose(found[0][case]["weights"], expected["weights"], atol=rtol, err_msg=case)


def test_whole_tasks_end_alike_also_with_more_ranks_than_there_is_work_for(alone, on_ranks, ranks):
    for found in on_ranks(ranks):
        losses, expected = found["tasks"].pop("train 2"), alone["tasks"]["train 2"]
        assert losses == pytest.approx(expected, rel=1e-5)
        assert found["tasks"] == {name: value for name, value in alone["tasks"].items() if name != "train 2"}
    assert len(alone["tasks"]["select 300"][0]) == 25
    assert alone["tasks"]["select 0"] == [[], {}]
    steps, count, saved, dropped = alone["tasks"]["select later"]
    assert (len(steps), count) == (60, 25)
    assert saved > 0
    assert {"known", "duplicate", "thinned", "surplus"} <= set(dropped)
    assert alone["tasks"]["train short"]


def test_every_rank_gets_the_report_of_the_gate_that_one_process_makes(alone, on_ranks, ranks):
    assert [found["gates"] for found in on_ranks(ranks)] == [alone["gates"]] * ranks
    assert alone["gates"]["parent"]["count"] == 150
    assert alone["gates"]["walks"] == 2
    assert alone["gates"]["reason"]
