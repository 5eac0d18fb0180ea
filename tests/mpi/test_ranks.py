"""Several ranks come to the result of one process."""

import numpy as np
import pytest
import torch
from rank_cases import CASES

from pipeline.ranks import ALONE


@pytest.mark.parametrize("ranks", [2, 3])
def test_all_methods_pick_the_same_candidates_on_every_rank_as_one_process(on_ranks, ranks):
    alone = CASES["picks"](ALONE)
    assert on_ranks("picks", ranks) == [alone] * ranks
    assert len(alone["maxdet 400 61"]) == 40


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_same_structures_are_found_to_be_there_already(on_ranks, ranks):
    alone = CASES["same"](ALONE)
    assert on_ranks("same", ranks) == [alone] * ranks
    assert len(alone["300 0.02"]) > 30 > len(alone["300 0.0"]) > 0


@pytest.mark.parametrize("ranks", [2, 3])
def test_losses_and_weights_are_those_of_one_process_up_to_rounding(on_ranks, ranks):
    torch.set_num_threads(1)
    alone = CASES["curves"](ALONE)
    found = on_ranks("curves", ranks)
    for case, expected in alone.items():
        assert all(one[case] == found[0][case] for one in found), "ranks differ"
        # float32 sums of gradients in another order, after up to 220 steps of Adam
        rtol = 1e-9 if "64" in case else 1e-3
        np.testing.assert_allclose(found[0][case]["loss"], expected["loss"], rtol=rtol, err_msg=case)
        np.testing.assert_allclose(found[0][case]["score"], expected["score"], rtol=rtol, err_msg=case)
        np.testing.assert_allclose(found[0][case]["weights"], expected["weights"], atol=rtol, err_msg=case)
