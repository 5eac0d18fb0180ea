"""However a segment is cut into legs, what its walkers find is the same to the last bit."""

import math
import pickle
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from engine import crystal, ethanol, model, slab, water, zoo
from test_walkers import DIGEST, OPEN, found, label_of, newborn, nursery_of, same_bits, settings_of

from pipeline.dynamics.walkers import WalkerBatch
from pipeline.node import Node
from pipeline.potentials import save
from pipeline.records import ModelRef, Status, StopReason, WalkTask
from pipeline.settings.variables import DistanceVariable
from pipeline.shards import read_candidates, read_walkers, write_labels, write_walkers
from pipeline.walk import run_walk

STEPS = 60


@pytest.fixture(scope="module")
def single():
    return model(dtype=torch.float32)


def restless(check_every=5):
    """Settings under which walkers stop for several reasons within a few dozen steps and are replaced."""
    stop = OPEN.model_copy(update={"uncertainty_eV_per_A": 0.2, "isolation_A": 1.6, "check_every": check_every})
    return settings_of(stop=stop, max_steps=25, store_every=7, timestep_fs=1.0, tau=0.5)


def walk_in_legs(subject, settings, resume, cuts, directory, *, enough=0, seed=11):
    """Legs of the given lengths, each in a new batch from a file of walkers, until the segment is over."""
    starts = [water(k) for k in range(20, 24)]
    slots = len(resume)
    candidates, stops, born, left, wanted = [], Counter(), [0] * slots, STEPS, enough
    for leg, steps in enumerate([*cuts, STEPS]):
        nursery = nursery_of(settings, starts, slots, seed)
        nursery.born = list(born)
        journey = WalkerBatch(subject, DIGEST, settings, nursery, resume).run(min(steps, left), wanted)
        ended_early = journey.steps_left == 0 and journey.steps < min(steps, left)
        candidates += journey.candidates
        stops.update(journey.stops)
        born, left = nursery.born, left - journey.steps
        resume = read_walkers(write_walkers(directory / f"leg{leg}.h5", journey.walkers))
        if wanted:
            wanted -= sum(count for reason, count in journey.stops.items() if reason is not StopReason.COMPLETED)
        if left == 0 or ended_early or (enough and wanted <= 0):
            break
    return tuple(candidates), tuple(resume), dict(sorted(stops.items())), tuple(born), STEPS - left


@pytest.mark.parametrize("enough", [0, 4], ids=["to the end", "until enough"])
@pytest.mark.parametrize("trial", range(4))
def test_random_cuts_change_nothing(single, tmp_path, trial, enough):
    rng = np.random.default_rng([trial, enough])
    settings = restless(int(rng.integers(3, 7)))
    resume = [newborn(frame, seed=k, name=f"w{k}", tau=0.5, temperature_K=900.0) for k, frame in enumerate(zoo(30))]
    resume[int(rng.integers(4))] = None
    leaping = np.zeros((3, 3))
    leaping[1, 2] = 1e4
    resume.append(newborn(water(20), velocities=leaping, name="leaping"))
    (tmp_path / "whole").mkdir()
    whole = walk_in_legs(single, settings, resume, [], tmp_path / "whole", enough=enough)
    for cutting in range(3):
        cuts = [1] * STEPS if trial == cutting == 0 else rng.integers(1, 25, size=9).tolist()
        place = tmp_path / f"cut{cutting}"
        place.mkdir()
        same_bits(walk_in_legs(single, settings, resume, cuts, place, enough=enough), whole)
    _, _, stops, born, steps = whole
    assert StopReason.NOT_FINITE in stops
    assert len(stops) >= 2
    assert sum(born) >= 4
    assert (steps < STEPS) == bool(enough)


def test_the_last_good_geometry_survives_a_cut(single, tmp_path):
    settings = settings_of(stop=OPEN.model_copy(update={"isolation_A": 3.0}), tau=0.0, store_every=1000)
    frame = water(20)
    frame.positions[2] = frame.positions[0] + [0, 0, -2.5]
    flying = np.array([[0, 0, 0], [0, 0, 0], [0, 0, -2.5]])
    resume = [newborn(frame, velocities=flying, tau=0.0)]
    (whole, *_), (cut, *_) = (walk_in_legs(single, settings, resume, cuts, tmp_path) for cuts in ([], [5, 1, 1, 1, 1]))
    assert [c.reason for c in whole] == [StopReason.ISOLATED_ATOM]
    same_bits(cut, whole)


def test_what_another_model_said_of_a_geometry_is_not_proposed(single):
    settings = settings_of(tau=0.0)
    walker = WalkerBatch(single, DIGEST, settings, nursery_of(settings, [water()], 1), [newborn(water(20))])
    before = walker.run(7).walkers
    assert before[0].good is not None
    assert before[0].good.age == 5
    for digest, kept in ((DIGEST, True), ("b" * 64, False)):
        later = WalkerBatch(single, digest, settings, nursery_of(settings, [water()], 1), before)
        assert (later.run(1).walkers[0].good is not None) is kept


@pytest.fixture(scope="module")
def task(tmp_path_factory, single):
    here = tmp_path_factory.mktemp("legs")
    ref = save(single, here / "v0003.pt")
    return WalkTask(
        task="walk-r0002-0001-l00",
        round=2,
        item=1,
        leg=0,
        model=ModelRef(version=3, file=ref),
        settings=restless(),
        temperatures_K=(300.0, 900.0, 900.0),
        pressures_MPa=(0.0,) * len((300.0, 900.0, 900.0)),
        variables={},
        starts=write_labels(here / "starts.h5", [label_of(frame) for frame in (water(20), ethanol(20), crystal(20))]),
        resume=write_walkers(here / "resume.h5", [None, newborn(slab(20), name="old"), None]),
        steps=STEPS,
        enough=0,
        born=(0, 0, 0),
        seconds=math.inf,
        output=str(here / "whole"),
        seed=1234567,
        threads=1,
    )


def next_leg(task, result, directory, **changes):
    leg = task.leg + 1
    output = str(directory / f"leg{leg}")
    carried = {"resume": result.walkers, "steps": result.steps_left, "born": result.born, "leg": leg, "output": output}
    return replace(task, **carried, **changes)


def test_a_leg_without_time_gets_to_the_next_check_and_all_legs_together_are_the_segment(task, tmp_path):
    whole = run_walk(task)
    leg = replace(task, seconds=1e-6, output=str(tmp_path / "leg0"))
    candidates, stops, steps = [], Counter(), []
    for _ in range(STEPS):
        result = run_walk(leg)
        candidates += read_candidates(result.candidates)
        stops.update(result.stops)
        steps.append(result.steps)
        if not result.steps_left:
            break
        leg = next_leg(leg, result, tmp_path)
    assert sum(steps) == STEPS
    assert len(steps) > 10
    assert max(steps) <= 5
    same_bits(tuple(candidates), tuple(read_candidates(whole.candidates)))
    same_bits(tuple(read_walkers(result.walkers)), tuple(read_walkers(whole.walkers)))
    assert (dict(stops), result.born) == (whole.stops, whole.born)


def by_system(candidates, variable):
    """Count, mean of the largest bounds and cells, by going through candidates one by one."""
    found = {}
    for system in {candidate.frame.system for candidate in candidates}:
        own = [candidate for candidate in candidates if candidate.frame.system == system]
        low, high = variable.range_A
        lengths = [np.linalg.norm(c.frame.positions[1] - c.frame.positions[0]) for c in own]
        cells = {int(32 * (length - low) / (high - low)) for length in lengths if low <= length < high}
        found[system] = (len(own), np.mean([float(c.atomic_uncertainty.max()) for c in own]), tuple(sorted(cells)))
    return found


def test_a_walk_says_what_each_system_brought_and_legs_together_say_the_same(task, tmp_path):
    variable = DistanceVariable(name="d", atoms=(0, 1), range_A=(0.9, 1.9))
    frames = [replace(frame, system=name) for frame, name in ((water(20), "a"), (ethanol(21), "a"), (ethanol(20), "b"))]
    names = {
        "starts": write_labels(tmp_path / "starts.h5", [label_of(frame) for frame in frames]),
        "resume": write_walkers(
            tmp_path / "resume.h5", [None, newborn(frames[0], name="a"), newborn(frames[2], name="b")]
        ),
    }
    named = replace(task, **names, followed={"a": (variable,)}, output=str(tmp_path / "named"))
    whole = run_walk(named)
    expected = by_system(read_candidates(whole.candidates), variable)
    assert set(expected) == {"a", "b"}
    assert {system: found.count for system, found in whole.found.items()} == {k: v[0] for k, v in expected.items()}
    for system, (_, mean, cells) in expected.items():
        assert whole.found[system].mean_bound == pytest.approx(mean, rel=1e-6)
        assert whole.found[system].cells == (cells if system == "a" else ())
    assert len(whole.found["a"].cells) > 1

    leg, counts, cells = replace(named, seconds=1e-6, output=str(tmp_path / "leg0")), Counter(), set()
    for _ in range(STEPS):
        result = run_walk(leg)
        counts.update({system: found.count for system, found in result.found.items()})
        cells |= set(result.found["a"].cells) if "a" in result.found else set()
        if not result.steps_left:
            break
        leg = next_leg(leg, result, tmp_path)
    assert dict(counts) == {system: found.count for system, found in whole.found.items()}
    assert tuple(sorted(cells)) == whole.found["a"].cells


def test_shares_decide_who_starts_and_legs_change_nothing(task, tmp_path):
    frames = [replace(frame, system=name) for frame, name in ((water(20), "a"), (water(21), "a"), (ethanol(20), "b"))]
    starts = write_labels(tmp_path / "starts.h5", [label_of(frame) for frame in frames])
    shared = replace(task, starts=starts, resume=None, shares={"b": 1.0}, output=str(tmp_path / "shared"))
    whole = run_walk(shared)
    assert set(whole.found) == {"b"}
    even = replace(shared, shares={"b": 0.5, "a": 0.5}, output=str(tmp_path / "even"))
    whole = run_walk(even)
    first = run_walk(replace(even, seconds=1e-6, output=str(tmp_path / "leg0")))
    last = run_walk(next_leg(even, first, tmp_path))
    same_bits(tuple(read_walkers(last.walkers)), tuple(read_walkers(whole.walkers)))
    turned = run_walk(replace(even, shares={"a": 0.5, "b": 0.5}, output=str(tmp_path / "turned")))
    same_bits(found(turned), found(whole))


def test_the_next_leg_may_be_made_by_another_process(task, tmp_path):
    first = run_walk(replace(task, seconds=1e-6, output=str(tmp_path / "leg0")))
    here = next_leg(task, first, tmp_path)
    code = (
        "import pickle, sys; from pipeline.walk import run_walk;"
        "sys.stdout.buffer.write(pickle.dumps(run_walk(pickle.loads(sys.stdin.buffer.read()))))"
    )
    there = replace(here, output=str(tmp_path / "there"))
    run = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(there), capture_output=True, check=True, timeout=300
    )
    same_bits(found(pickle.loads(run.stdout)), found(run_walk(here)))


def test_a_leg_keeps_to_its_time_and_to_that_of_its_job(task, tmp_path):
    endless = replace(task, steps=10**6, seconds=1.0, output=str(tmp_path / "a"))
    started = time.monotonic()
    result = run_walk(endless)
    assert 0.5 < time.monotonic() - started < 5.0
    assert result.steps > 20
    assert result.steps_left == 10**6 - result.steps
    ending = Node(ends=time.time() + 5.0)
    started = time.monotonic()
    run_walk(replace(endless, seconds=600.0, output=str(tmp_path / "b")), ending)
    assert time.monotonic() - started < 5.0


def test_a_walk_that_cannot_be_written_or_read_fails_and_says_where(task, tmp_path):
    (tmp_path / "out").write_text("in the way")
    torn = replace(task, resume=replace(task.resume, sha256="0" * 64))
    missing = replace(task, model=ModelRef(version=3, file=replace(task.model.file, path=str(tmp_path / "v9.pt"))))
    quick = {"seconds": 1e-6, "output": str(tmp_path / "out")}
    for broken, place in ((replace(task, **quick), "out"), (torn, "resume.h5"), (missing, "v9.pt")):
        result = run_walk(broken)
        assert result.status is Status.FAILED
        assert place in result.reason
        assert (result.candidates, result.walkers, result.steps, result.steps_left) == (None, None, 0, STEPS)
        assert result.found == {}


def test_a_walk_reads_the_copy_of_the_model_on_its_node_and_says_when_it_cannot(task, tmp_path):
    quick = replace(task, seconds=1e-6)
    expected = run_walk(replace(quick, output=str(tmp_path / "plain")))
    result = run_walk(replace(quick, output=str(tmp_path / "cached")), Node(cache=tmp_path / "cache"))
    same_bits(found(result), found(expected))
    assert [path.stem for path in (tmp_path / "cache").iterdir()] == [task.model.file.sha256]
    (tmp_path / "file").touch()
    result = run_walk(replace(quick, output=str(tmp_path / "full")), Node(cache=tmp_path / "file" / "cache"))
    same_bits(found(replace(result, remarks=())), found(expected))
    assert str(tmp_path / "file" / "cache") in result.remarks[0].text


def test_a_worker_that_was_given_up_does_not_write_over_the_one_that_took_its_place(task, tmp_path):
    again = replace(task, output=str(tmp_path / "same"), seconds=1e-6)
    first, second = run_walk(again), run_walk(again)
    assert first.candidates.path != second.candidates.path
    assert read_walkers(first.walkers)
    assert read_walkers(second.walkers)


def test_a_walk_computes_on_the_device_of_its_node_in_full_float32(task, tmp_path):
    torch.set_float32_matmul_precision("medium")
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):  # where numbers cannot come back from
        run_walk(replace(task, output=str(tmp_path / "out")), Node(device="meta"))
    assert torch.get_float32_matmul_precision() == "highest"
