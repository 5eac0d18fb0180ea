import pytest
import torch

from pipeline.batching import cell_volumes
from pipeline.dynamics.barostat import Barostat
from pipeline.dynamics.langevin import Langevin
from pipeline.settings.walkers import BarostatSettings
from pipeline.units import FEMTOSECOND

KINDS = ("isotropic", "anisotropic", "flexible")


def at_rest(kind, walkers_of, *, time_fs=200.0, friction_per_ps=0.0, device="cpu"):
    """A thermostat and a barostat for walkers of so many atoms at rising temperatures and pressures."""
    count = torch.tensor(walkers_of, device=device)
    conditions = torch.arange(1, len(walkers_of) + 1, dtype=torch.float64, device=device)
    system = torch.repeat_interleave(torch.arange(len(walkers_of), device=device), count, output_size=sum(walkers_of))
    timestep = 4.0 * FEMTOSECOND
    langevin = Langevin.make(
        timestep=timestep,
        friction=friction_per_ps,
        masses=torch.full((sum(walkers_of),), 40.0, dtype=torch.float64, device=device),
        temperatures_K=40.0 * conditions.index_select(0, system),
    )
    barostat = Barostat.make(
        BarostatSettings(kind=kind, time_fs=time_fs, friction_per_ps=friction_per_ps),
        timestep=timestep,
        temperatures_K=40.0 * conditions,
        pressures_MPa=100.0 * conditions,
        n_atoms=count,
        langevin=langevin,
        system=system,
    )
    return langevin, barostat


def somewhere(walkers_of, seed=0):
    """Positions, velocities, cells, strain rates, forces, virials, noise, noise of the cells."""
    random = torch.Generator().manual_seed(seed)
    atoms, count = sum(walkers_of), len(walkers_of)

    def draw(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    def symmetric():
        x = draw(count, 3, 3)
        return x + x.transpose(1, 2)

    cells = 8.0 * torch.eye(3, dtype=torch.float64) + 0.5 * draw(count, 3, 3)
    rate = 1e-3 * symmetric()
    return (
        3.0 * draw(atoms, 3),
        0.01 * draw(atoms, 3),
        cells,
        rate,
        draw(atoms, 3),
        symmetric(),
        draw(atoms, 3),
        draw(count, 3, 3),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_of_infinite_mass_leaves_the_dynamics_at_constant_volume(kind):
    langevin, barostat = at_rest(kind, [3, 5], time_fs=1e12, friction_per_ps=1.0)
    positions, velocities, cells, _, forces, virials, noise, cell_noise = somewhere([3, 5])
    still = torch.zeros_like(cells)
    moved = barostat.first_half(positions, velocities, cells, still, forces, virials, noise, cell_noise)
    expected = langevin.first_half(positions, velocities, forces, noise)
    for found, plain in zip(moved, (*expected, cells, still), strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-12, atol=1e-10)
    kicked, _ = barostat.second_half(moved[1], cells, still, forces, virials)
    torch.testing.assert_close(kicked, langevin.second_half(expected[1], forces), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_walkers_of_a_batch_do_not_see_each_other(kind):
    sizes = [3, 1, 5]
    state = somewhere(sizes)
    _, together = at_rest(kind, sizes, friction_per_ps=1.0)
    moved = together.first_half(*state)
    kicked = together.second_half(moved[1], moved[2], moved[3], state[4], state[5])
    first = 0
    for k, size in enumerate(sizes):
        _, alone = at_rest(kind, sizes[: k + 1], friction_per_ps=1.0)
        # the conditions rise with the place: keep the walkers before it, other numbers in them
        own = [x.clone() for x in state]
        for x in own:
            rows = first if len(x) == sum(sizes) else k
            x[:rows] = 0.7 * x[:rows]
        cut = [x[: first + size] if len(x) == sum(sizes) else x[: k + 1] for x in own]
        found = alone.first_half(*cut)
        again = alone.second_half(found[1], found[2], found[3], cut[4], cut[5])
        for mine, all_of_them in zip((*found, *again), (*moved, *kicked), strict=True):
            rows = slice(first, first + size) if len(all_of_them) == sum(sizes) else slice(k, k + 1)
            torch.testing.assert_close(mine[rows], all_of_them[rows], rtol=1e-12, atol=1e-14)
        first += size


def test_the_strain_rate_has_the_form_of_its_kind_and_the_cell_does_not_turn():
    state = somewhere([4, 4])
    for kind in KINDS:
        _, barostat = at_rest(kind, [4, 4])
        cells, still = state[2], torch.zeros_like(state[2])
        _, _, after, rate = barostat.first_half(*state[:2], cells, still, *state[4:])
        assert torch.equal(rate, rate.transpose(1, 2))
        growth = torch.linalg.solve(cells, after)  # cells @ growth = after
        torch.testing.assert_close(growth, growth.transpose(1, 2), rtol=0.0, atol=1e-11)
        off = rate - torch.diag_embed(rate.diagonal(dim1=1, dim2=2))
        assert bool((off != 0).any()) == (kind == "flexible")
        if kind == "isotropic":
            assert torch.equal(rate[:, 0, 0], rate[:, 1, 1])


def test_volumes_are_determinants():
    cells = somewhere([1] * 6)[2] * torch.tensor([1.0, -1.0]).repeat(3).view(6, 1, 1)
    torch.testing.assert_close(cell_volumes(cells), torch.linalg.det(cells).abs())


@pytest.mark.parametrize("kind", KINDS)
def test_steps_at_constant_pressure_never_wait_for_the_device(kind):
    """The meta device has shapes and no numbers: whatever asks for one raises."""
    _, barostat = at_rest(kind, [3, 5], device="meta")
    state = [x.to("meta") for x in somewhere([3, 5])]
    moved = barostat.first_half(*state)
    velocities, rate = barostat.second_half(moved[1], moved[2], moved[3], state[4], state[5])
    assert velocities.shape == (8, 3)
    assert rate.shape == (2, 3, 3)
    assert rate.device.type == "meta"
