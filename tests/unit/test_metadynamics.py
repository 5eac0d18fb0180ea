"""Hills: their height and sum against a formula of its own, their force, and the free energy they build up to."""

import copy
import math
from dataclasses import replace

import numpy as np
import torch

from pipeline.batching import make_batch
from pipeline.dynamics.metadynamics import FIRST_PLACES, Hillside
from pipeline.frames import Frame
from pipeline.records import Hills
from pipeline.settings.variables import DihedralVariable, DistanceVariable, VolumeVariable
from pipeline.settings.walkers import MetadynamicsSettings
from pipeline.units import BOLTZMANN_EV_PER_K

SMALL, LARGE = "small", "large"
VARIABLES = {
    SMALL: (
        DihedralVariable(name="phi", atoms=(0, 1, 2, 3)),
        DistanceVariable(name="d", atoms=(0, 3), range_A=(1.0, 4.0)),
        VolumeVariable(name="V", range_A3=(10.0, 500.0)),
    ),
    LARGE: (
        DihedralVariable(name="phi", atoms=(2, 1, 4, 6)),
        DistanceVariable(name="d", atoms=(6, 0), range_A=(1.0, 4.0)),
        VolumeVariable(name="V", range_A3=(10.0, 500.0)),
    ),
}
SETTINGS = MetadynamicsSettings(
    variables=("phi", "d", "V"), widths=(20.0, 0.5, 40.0), height_eV=0.05, every=10, bias_factor=8.0
)
KELVIN = (300.0, 450.0, 300.0)
NONE = Hills(centers=np.zeros((0, 3)), heights=np.zeros(0))


def frame(seed, system):
    rng = np.random.default_rng(seed)
    atoms = {SMALL: 4, LARGE: 7}[system]
    cell = np.diag(rng.uniform(5, 6, size=3)) + rng.normal(scale=0.3, size=(3, 3))
    return Frame(
        numbers=np.ones(atoms, dtype=np.int64),
        positions=rng.normal(scale=1.5, size=(atoms, 3)),
        cell=cell,
        pbc=np.ones(3, bool),
        system=system,
    )


def frames_at(step):
    """Three walkers near where they always are."""
    base = [frame(0, SMALL), frame(1, LARGE), frame(2, SMALL)]
    rng = np.random.default_rng(100 + step)
    return [replace(f, positions=f.positions + rng.normal(scale=0.15, size=f.positions.shape)) for f in base]


def batch_of(frames):
    return make_batch(frames, 1.0)


def hillside(frames, states, kelvin=KELVIN, settings=SETTINGS, device="cpu"):
    return Hillside(
        settings,
        variables=VARIABLES,
        systems=[f.system for f in frames],
        temperatures_K=kelvin,
        states=states,
        device=device,
    )


def walked(steps):
    """Hills of three walkers after so many deposits."""
    hills = hillside(frames_at(0), [NONE] * 3)
    for step in range(steps):
        hills.deposit(batch_of(frames_at(step)))
    return hills


def same(one: Hills, other: Hills) -> bool:
    return np.array_equal(one.centers, other.centers) and np.array_equal(one.heights, other.heights)


def test_energy_and_heights_are_those_of_a_formula_written_out_on_a_grid():
    settings = MetadynamicsSettings(variables=("phi",), widths=(25.0,), height_eV=0.03, every=1, bias_factor=6.0)
    variables = {SMALL: (DihedralVariable(name="phi", atoms=(0, 1, 2, 3)),)}

    def turned(angle):
        points = [[0, 1.0, 0], [0, 0, 0], [1.4, 0, 0], [1.4, math.cos(angle), math.sin(angle)]]
        return replace(frame(0, SMALL), positions=np.array(points))

    def batch_at(degrees):
        return batch_of([turned(math.radians(d)) for d in degrees])

    def periodic(grid, center):
        images = grid[:, None] - center + np.array([-360.0, 0.0, 360.0])
        return images[np.arange(len(grid)), np.abs(images).argmin(axis=1)]

    hills = Hillside(
        settings,
        variables=variables,
        systems=[SMALL],
        temperatures_K=[350.0],
        states=[Hills(centers=np.zeros((0, 1)), heights=np.zeros(0))],
    )
    visited = [170.0, -175.0, 175.0, 20.0, 172.0, -178.0]
    grid = np.linspace(-180.0, 179.0, 120)
    expected, heights = np.zeros_like(grid), []
    for degrees in visited:
        before = sum(
            h * math.exp(-(periodic(np.array([degrees]), c)[0] ** 2) / (2 * 25.0**2))
            for h, c in zip(heights, visited, strict=False)
        )
        heights.append(0.03 * math.exp(-before / (BOLTZMANN_EV_PER_K * 5.0 * 350.0)))
        expected += heights[-1] * np.exp(-(periodic(grid, degrees) ** 2) / (2 * 25.0**2))
        hills.deposit(batch_at([degrees]))
    state = hills.state(0)
    np.testing.assert_allclose(state.centers[:, 0], visited, atol=1e-9)
    np.testing.assert_allclose(state.heights, heights, rtol=1e-10)
    on_grid = [hills.energy(batch_at([degrees])).item() for degrees in grid]
    np.testing.assert_allclose(on_grid, expected, rtol=1e-9, atol=1e-14)
    # the hills near the end of the turn reach over it
    assert expected[0] > 0.05
    assert expected[-1] > 0.05


def test_forces_and_virials_are_minus_the_slope_of_the_energy():
    hills, frames = walked(12), frames_at(3)
    batch = batch_of(frames)
    positions = batch.positions.clone().requires_grad_(True)
    strain = torch.zeros_like(batch.cells).requires_grad_(True)
    energy = hills.energy(batch.with_positions(positions), strain)
    assert (energy > 0).all()
    by_position, by_strain = torch.autograd.grad(energy.sum(), [positions, strain])

    def slope(change, h=1e-5):
        up, down = (hills.energy(batch_of([change(f, sign * h) for f in frames])) for sign in (1, -1))
        return (up - down) / (2 * h)

    def moved(atom, axis):
        def change(f, shift):
            shifted = f.positions.copy()
            shifted[atom, axis] += shift
            return replace(f, positions=shifted)

        return change

    def deformed(row, column):
        def change(f, shift):
            deformation = np.eye(3)
            deformation[row, column] += 0.5 * shift
            deformation[column, row] += 0.5 * shift
            return replace(f, positions=f.positions @ deformation, cell=f.cell @ deformation)

        return change

    first = np.array([0, 4, 11])
    for atom in range(4):
        for axis in range(3):
            expected = slope(moved(atom, axis))
            torch.testing.assert_close(by_position[first + atom, axis], expected, rtol=1e-6, atol=1e-9)
    for row in range(3):
        for column in range(3):
            torch.testing.assert_close(by_strain[:, row, column], slope(deformed(row, column)), rtol=1e-6, atol=1e-9)


def test_hills_act_on_the_one_who_left_them_and_on_nobody_else():
    together, frames = walked(8), frames_at(2)
    alone = []
    for k in range(3):
        own = hillside([frames[k]], [NONE], [KELVIN[k]])
        for step in range(8):
            own.deposit(batch_of([frames_at(step)[k]]))
        assert same(own.state(0), together.state(k))
        alone.append(own.energy(batch_of([frames[k]])))
    assert torch.equal(together.energy(batch_of(frames)), torch.cat(alone))
    part = together.energy(batch_of(frames[1:]), walkers=slice(1, 3))
    assert torch.equal(part, torch.cat(alone[1:]))


def test_a_walker_taken_up_again_goes_on_bit_for_bit_in_any_company():
    through = walked(70)  # more than there are places for at first
    again = hillside(frames_at(0), through.states())
    assert [len(state.heights) for state in through.states()] == [70] * 3
    assert all(same(through.state(k), state) for k, state in enumerate(through.states()))
    for step in (70, 71):
        batch = batch_of(frames_at(step))
        assert torch.equal(through.energy(batch), again.energy(batch))
        for one in (through, again):
            one.deposit(batch)
    assert all(same(a, b) for a, b in zip(through.states(), again.states(), strict=True))


def test_how_many_hills_another_walker_has_changes_no_bit():
    few = walked(40)
    batch = batch_of(frames_at(5))
    many = Hills(centers=np.zeros((5 * FIRST_PLACES, 3)), heights=np.full(5 * FIRST_PLACES, 1e-3))
    crowded = walked(40)
    crowded.exchange(np.array([0, 3, 2]), systems=[LARGE], temperatures_K=[450.0], states=[many])
    assert torch.equal(few.energy(batch)[[0, 2]], crowded.energy(batch)[[0, 2]])
    assert same(crowded.state(1), many)


def test_a_slot_that_is_replaced_takes_the_variables_and_the_temperature_of_its_new_walker():
    hills = walked(10)
    before = hills.states()
    hills.exchange(np.array([3, 1, 2]), systems=[LARGE], temperatures_K=[600.0], states=[NONE])
    frames = [frame(7, LARGE), *frames_at(4)[1:]]
    assert hills.energy(batch_of(frames))[0].item() == 0.0
    expected = hillside(frames, [NONE, *before[1:]], (600.0, *KELVIN[1:]))
    for _ in range(3):
        for one in (hills, expected):
            one.deposit(batch_of(frames))
    assert all(same(a, b) for a, b in zip(hills.states(), expected.states(), strict=True))


def test_a_copy_keeps_what_was_when_more_hills_are_left():
    hills, batch = walked(3), batch_of(frames_at(0))
    kept = copy.copy(hills)
    before = kept.energy(batch)
    hills.deposit(batch)
    assert torch.equal(kept.energy(batch), before)
    assert len(kept.state(0).heights) == 3


def test_hills_never_wait_for_the_device():
    batch = batch_of(frames_at(0)).to(torch.device("meta"))
    hills = hillside(frames_at(0), [NONE] * 3, device="meta")
    hills.deposit(batch)
    hills.exchange(np.array([0, 3, 2]), systems=[SMALL], temperatures_K=[300.0], states=[NONE])
    assert hills.energy(batch, torch.zeros_like(batch.cells)).shape == (3,)


def test_hills_fill_a_double_well_to_minus_its_free_energy():
    # overdamped pairs of atoms along x: F(s) is the potential itself, with a barrier of 6 k_B T between its wells
    walkers, steps, every, mobility, kelvin, bias_factor = 128, 5000, 20, 0.1, 300.0, 5.0
    kT = BOLTZMANN_EV_PER_K * kelvin

    def profile(s):
        return 6 * kT * ((s - 4.0) ** 2 - 1.0) ** 2

    pair = replace(frame(0, SMALL), numbers=np.ones(2, dtype=np.int64), positions=np.array([[0.0, 0, 0], [3.0, 0, 0]]))
    hills = Hillside(
        MetadynamicsSettings(variables=("d",), widths=(0.1,), height_eV=0.012, every=every, bias_factor=bias_factor),
        variables={SMALL: (DistanceVariable(name="d", atoms=(0, 1), range_A=(2.0, 6.0)),)},
        systems=[SMALL] * walkers,
        temperatures_K=[kelvin] * walkers,
        states=[Hills(centers=np.zeros((0, 1)), heights=np.zeros(0))] * walkers,
    )
    batch = batch_of([pair] * walkers)
    generator = torch.Generator().manual_seed(5)
    along = torch.zeros_like(batch.positions)
    along[1::2, 0] = 1.0
    for step in range(1, steps + 1):
        positions = batch.positions.requires_grad_(True)
        (slope,) = torch.autograd.grad(hills.energy(batch).sum(), positions)
        s = positions.detach()[:, :1]
        slope = slope + along * 24 * kT * (s - 4.0) * ((s - 4.0) ** 2 - 1.0)
        kick = math.sqrt(2 * mobility * kT) * torch.randn(s.shape, generator=generator, dtype=torch.float64)
        batch = batch.with_positions(positions.detach() + along * (kick - mobility * slope))
        if step % every == 0:
            hills.deposit(batch)
    states = hills.states()
    visited = np.concatenate([state.centers[:, 0] for state in states])
    grid = np.linspace(*np.quantile(visited, [0.005, 0.995]), 60)
    potential = np.mean(
        [(h.heights * np.exp(-((grid[:, None] - h.centers[:, 0]) ** 2) / 0.02)).sum(axis=1) for h in states], axis=0
    )
    error = -bias_factor / (bias_factor - 1.0) * potential - profile(grid)
    assert grid[0] < 2.7
    assert grid[-1] > 5.3  # both wells, and up their walls
    assert np.abs(error - error.mean()).max() < 0.5 * kT
