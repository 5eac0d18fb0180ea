import numpy as np
import pytest
import torch

from pipeline.dynamics import noise
from pipeline.dynamics.noise import Noise, philox

ONES = 0xFFFFFFFF
KNOWN = {  # the known answers of Random123 1.14 for philox4x32-10
    "zeros": ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    "ones": ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    "pi": (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_philox_gives_the_published_answers(name):
    counter, key, expected = KNOWN[name]
    words = philox(tuple(torch.tensor([c]) for c in counter), tuple(torch.tensor([k]) for k in key))
    assert tuple(int(word) for word in words) == expected


def noise_of(seeds, sizes, ages):
    return Noise(seeds, np.array(sizes), torch.tensor(ages), cell=True)


def test_the_numbers_depend_on_seed_and_age_alone_to_the_last_bit(monkeypatch):
    """Not on the batch a walker is in, its place there, the steps drawn together, or the order of asking."""
    rng = np.random.default_rng(3)
    alone = noise_of([2**64 - 1], [7], [0])
    expected = [alone.at(age) for age in range(100)]
    for trial in range(30):
        monkeypatch.setattr(noise, "BLOCK_DRAWS", int(rng.integers(1, 4000)) if trial else noise.BLOCK_DRAWS)
        before = rng.integers(1, 40, size=3).tolist()
        age = int(rng.integers(0, 60))
        batch = noise_of([1, 2, 3, 2**64 - 1, 5], [*before, 7, 4], [11, 12, 13, age, 14])
        for step in rng.integers(0, 40, size=6).tolist():
            atoms, cells = batch.at(step)
            first = sum(before)
            assert torch.equal(atoms[first : first + 7], expected[age + step][0])
            assert torch.equal(cells[3], expected[age + step][1][0])


def test_ages_beyond_a_word_and_seeds_that_share_a_word_give_other_numbers():
    drawn = [
        noise_of([seed], [5], [age]).at(0)[0]
        for seed, age in ((1, 0), (1, 1), (1, 2**32), (1 + 2**32, 0), (2**32, 1), (2, 0))
    ]
    for k, one in enumerate(drawn):
        assert all((one != other).all() for other in drawn[:k])


def test_the_numbers_of_the_cell_are_not_those_of_the_atoms():
    atoms, cells = noise_of([9], [3], [0]).at(0)
    assert (atoms != cells[0]).all()
    assert Noise([9], np.array([3]), torch.tensor([0]), cell=False).at(0)[1] is None
