"""Every way a label can fail, provoked with the real programs: understood, tried otherwise, given up where nothing helps."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.frames import Frame
from pipeline.label import run_label
from pipeline.label_directory import FAILURE, TRIES
from pipeline.node import Node
from pipeline.records import Cause, LabelResult, LabelTask, Limits, Measure, Status
from pipeline.references.processes import MARK
from pipeline.settings.dft import CP2KReference, DFTReference, KPoints, QuantumEspressoReference
from pipeline.settings.launch import LaunchSettings, ProgramSettings

PSEUDOPOTENTIALS = Path("/usr/share/espresso/pseudo")
SILICON = "Si.pbe-rrkj.UPF"
SAME_ENERGY_EV, SAME_FORCES_EV_PER_A = 1e-5, 1e-3
"""Two ways to one SCF solution may differ by this much."""


def espresso(**changes) -> QuantumEspressoReference:
    fast = {
        "pseudopotentials": str(PSEUDOPOTENTIALS),
        "pseudopotential_of": {"Si": SILICON},
        "cutoff_Ry": 20.0,
        "kpoints": KPoints(mesh=(2, 2, 2)),
    }
    return QuantumEspressoReference(**{**fast, **changes})


def cp2k(**changes) -> CP2KReference:
    fast = {"preset": "pbe", "cutoff_Ry": 200.0, "rel_cutoff_Ry": 30.0, "scf_convergence": 1e-6}
    return CP2KReference(**{**fast, **changes})


def running_below(directory: Path) -> list[int]:
    """Processes of calculations anywhere below a directory."""
    mark = f"{MARK}={directory}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if any(one.startswith(mark) for one in environment.split(b"\0")):
                found.append(int(entry.name))
    return found


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node with a disk of its own, on which nothing is left when a test is over."""
    node = Node(scratch=tmp_path / "node")
    yield node
    assert node.scratch is not None
    assert not node.scratch.exists() or list(node.scratch.iterdir()) == []
    assert running_below(tmp_path) == []


Label = Callable[..., LabelResult]


@pytest.fixture
def label(tmp_path: Path, node: Node, silicon: Frame, hydrogen: Frame, launch: LaunchSettings) -> Label:
    """Label two atoms with a reference."""

    def make(reference: DFTReference, **changes: object) -> LabelResult:
        task = LabelTask(
            task="label-1",
            round=0,
            item=0,
            frame=hydrogen if isinstance(reference, CP2KReference) else silicon,
            reference=reference,
            scratch=str(tmp_path / "label-1"),
            threads=1,
            launch=launch,
        )
        result = run_label(replace(task, **changes), node)
        assert result.core_s > 0 or not result.tries or result.tries[-1].cause is Cause.MISSING_FILE
        return result

    return make


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory, silicon: Frame, launch: LaunchSettings) -> LabelResult:
    """The label of silicon when nothing is in its way."""
    return run_label(
        LabelTask(
            task="plain",
            round=0,
            item=0,
            frame=silicon,
            reference=espresso(),
            scratch=str(tmp_path_factory.mktemp("plain")),
            threads=1,
            launch=launch,
        )
    )


def assert_same(result: LabelResult, plain: LabelResult) -> None:
    """It is the label that the first try would have given."""
    assert result.status is Status.DONE
    assert result.reference == plain.reference
    assert result.energy == pytest.approx(plain.energy, abs=SAME_ENERGY_EV)
    np.testing.assert_allclose(result.forces, plain.forces, atol=SAME_FORCES_EV_PER_A)


def causes(result: LabelResult) -> list[Cause]:
    return [one.cause for one in result.tries]


def inputs(tmp_path: Path, result: LabelResult, pattern: str) -> list[str]:
    """What the failed tries asked their program for."""
    files = [sorted((tmp_path / "label-1" / one.directory).glob(pattern)) for one in result.tries]
    assert all(files)
    return ["".join(path.read_text() for path in several) for several in files]


def wrapper(path: Path, text: str) -> str:
    """A program that stands in for pw.x."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def with_program(launch: LaunchSettings, **programs: str) -> LaunchSettings:
    return launch.model_copy(update={"programs": ProgramSettings(**programs)})


@pytest.mark.parametrize("reference", [espresso(max_steps=4), cp2k(max_steps=4)], ids=["qe", "cp2k"])
def test_too_few_scf_steps_are_followed_by_more_from_where_they_ended(label, tmp_path, reference):
    result = label(reference)
    assert causes(result) == [Cause.NOT_CONVERGED]
    assert result.measures == (Measure.MORE_STEPS,)
    enough = label(reference.model_copy(update={"max_steps": 100}), scratch=str(tmp_path / "enough"))
    assert enough.tries == ()
    assert_same(result, enough)


@pytest.mark.parametrize(("reference", "pattern"), [(espresso(max_steps=1), "*.in"), (cp2k(max_steps=1), "*.inp")])
def test_an_scf_that_never_converges_is_tried_in_every_way_and_quarantined(label, tmp_path, reference, pattern):
    # one step at first, three then: none of the other ways can do with so few
    result = label(reference)
    assert result.status is Status.FAILED
    assert causes(result) == [Cause.NOT_CONVERGED] * len(result.tries)
    ladder = [Measure.MORE_STEPS, Measure.GENTLE_MIXING, Measure.OTHER_SOLVER, Measure.SMEARED_START]
    assert [one.measures[-1:] for one in result.tries] == [(), *((measure,) for measure in ladder)]
    texts = inputs(tmp_path, result, pattern)
    assert len(set(texts)) == len(texts)
    assert "label-1" in result.reason
    story = (tmp_path / "label-1" / FAILURE).read_text()
    assert "try 5" in story


def test_a_label_without_enough_time_gets_more(label, launch, plain, tmp_path):
    late = tmp_path / "late-pw.x"  # on any machine longer than the first limit, and not much longer
    late.write_text('#!/bin/sh\nsleep 2.5\nexec pw.x "$@"\n')
    late.chmod(0o755)
    programs = launch.programs.model_copy(update={"pw": str(late)})
    result = label(espresso(), launch=launch.model_copy(update={"programs": programs, "time_limit": 2}))
    assert set(causes(result)) == {Cause.TIME_LIMIT}
    assert result.measures == (Measure.MORE_TIME,) * len(result.tries)
    assert_same(result, plain)


def test_a_second_is_not_enough_for_anything_and_the_label_is_quarantined(label, launch):
    slow = espresso(cutoff_Ry=60.0, kpoints=KPoints(mesh=(6, 6, 6)))
    began = time.monotonic()
    result = label(slow, launch=launch.model_copy(update={"time_limit": 1}))
    assert causes(result) == [Cause.TIME_LIMIT] * 3
    assert result.cause is Cause.TIME_LIMIT
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(("reference", "memory_GB"), [(espresso(), 0.07), (cp2k(), 0.2)], ids=["qe", "cp2k"])
def test_a_label_without_enough_memory_gets_more(label, launch, reference, memory_GB):
    result = label(reference, launch=launch.model_copy(update={"memory_GB": memory_GB}))
    assert result.status is Status.DONE
    assert set(causes(result)) == {Cause.OUT_OF_MEMORY}
    assert result.measures == (Measure.MORE_MEMORY,) * len(result.tries)


def test_a_label_that_is_never_given_enough_memory_is_quarantined(label, launch):
    result = label(espresso(), launch=launch.model_copy(update={"memory_GB": 0.01}))
    assert causes(result) == [Cause.OUT_OF_MEMORY] * 3


def test_an_input_that_the_program_refuses_is_not_tried_again(label, tmp_path):
    template = tmp_path / "broken.in"
    template.write_text(
        "&control\n calculation = 'scf'\n/\n&system\n ibrav = 0, nat = 2, ntyp = 1, ecutwfc = 20\n no_such_key = 1\n/\n"
        f"&electrons\n/\nATOMIC_SPECIES\nSi 28.0 {SILICON}\nATOMIC_POSITIONS angstrom\nSi 0 0 0\nSi 1.3 1.3 1.3\n"
        "K_POINTS gamma\nCELL_PARAMETERS angstrom\n0 2.7 2.7\n2.7 0 2.7\n2.7 2.7 0\n"
    )
    result = label(QuantumEspressoReference(template=str(template), pseudopotentials=str(PSEUDOPOTENTIALS)))
    assert causes(result) == [Cause.BAD_INPUT]
    assert "no_such_key" in result.reason


def test_a_pseudopotential_that_is_not_there_is_named_and_the_label_not_tried_again(label, tmp_path):
    result = label(espresso(pseudopotential_of={"Si": "nosuch.UPF"}))
    assert causes(result) == [Cause.MISSING_FILE]
    assert "nosuch.UPF" in result.reason
    family = tmp_path / "family"
    family.mkdir()
    shutil.copy(PSEUDOPOTENTIALS / SILICON, family)
    reference = espresso(pseudopotentials=str(family))
    assert label(reference).status is Status.DONE
    (family / SILICON).unlink()  # while the campaign runs
    result = label(reference, scratch=str(tmp_path / "label-2"))
    assert causes(result) == [Cause.MISSING_FILE]
    assert SILICON in result.reason


def test_a_basis_set_that_is_not_there_is_named_and_the_label_not_tried_again(label):
    result = label(cp2k(basis="NO-SUCH-BASIS"))
    assert causes(result) == [Cause.MISSING_FILE]
    assert "NO-SUCH-BASIS" in result.reason


def test_a_program_that_is_not_there_is_named_with_its_key(label, launch):
    result = label(espresso(), launch=with_program(launch, pw="nosuch-pw.x"))
    assert causes(result) == [Cause.MISSING_PROGRAM]
    assert "site.launch.programs.pw" in result.reason


@pytest.mark.parametrize(
    ("reference", "ranks"), [(espresso(), 1), (espresso(), 2), (cp2k(), 2)], ids=["qe", "qe 2 ranks", "cp2k 2 ranks"]
)
def test_a_killed_rank_is_a_crash_and_the_label_is_made_afresh(label, launch, tmp_path, reference, ranks):
    victims: list[int] = []
    programs = launch.programs
    program = programs.cp2k if isinstance(reference, CP2KReference) else programs.pw

    def kill_one() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            ranks_of = [pid for pid in running_below(tmp_path) if name_of(pid) == program]
            if len(ranks_of) == ranks:
                os.kill(ranks_of[-1], signal.SIGKILL)
                victims.append(ranks_of[-1])
                return

    killer = threading.Thread(target=kill_one)
    killer.start()
    result = label(reference, launch=launch.model_copy(update={"ranks": ranks}))
    killer.join()
    assert victims
    assert causes(result) == [Cause.CRASH]
    assert "signal 9" in result.tries[0].reason
    assert result.measures == (Measure.FRESH_START,)
    assert result.status is Status.DONE


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


WORKER = """
import pickle, sys
from pipeline.label import run_label
run_label(*pickle.loads(sys.stdin.buffer.read()))
"""


def test_a_worker_killed_in_the_second_try_leaves_the_second_try_to_the_next_one(launch, tmp_path, silicon, node):
    task = LabelTask(
        task="label-1",
        round=0,
        item=0,
        frame=silicon,
        reference=espresso(max_steps=4),
        scratch=str(tmp_path / "label-1"),
        threads=2,
        launch=launch.model_copy(update={"ranks": 2}),
    )
    worker = subprocess.Popen([sys.executable, "-c", WORKER], stdin=subprocess.PIPE)
    assert worker.stdin is not None
    worker.stdin.write(pickle.dumps((task, node)))
    worker.stdin.close()
    kept = tmp_path / "label-1" / TRIES
    while not (kept.exists() and "pw.x" in map(name_of, running_below(tmp_path))):
        assert worker.poll() is None
        time.sleep(0.01)
    worker.kill()
    worker.wait()
    deadline = time.monotonic() + 8
    while running_below(tmp_path):
        assert time.monotonic() < deadline, "the program outlived its worker"
        time.sleep(0.05)
    result = run_label(task, node)
    assert result.status is Status.DONE
    assert causes(result) == [Cause.NOT_CONVERGED]
    assert result.measures == (Measure.MORE_STEPS,)
    assert result.timing.started > kept.stat().st_mtime  # the first try was not made again


@pytest.mark.parametrize(
    "damage",
    [
        "head -c 4000 pw.all",
        "cat pw.all; cat pw.all",
        "sed 's/^!    total energy.*/!    total energy = -13.0 Ry/' pw.all",
        "cat pw.all; find . -name data-file-schema.xml -exec truncate -s 5000 {} +",
    ],
    ids=["torn", "twice", "another energy", "torn xml"],
)
def test_a_damaged_output_gives_no_label_and_the_label_is_made_afresh(label, launch, tmp_path, plain, damage):
    once = tmp_path / "once"
    program = wrapper(
        tmp_path / "pw.x", f'if [ -e {once} ]; then exec pw.x "$@"; fi\ntouch {once}\npw.x "$@" > pw.all\n{damage}'
    )
    result = label(espresso(), launch=with_program(launch, pw=program))
    assert causes(result) in ([Cause.BAD_OUTPUT], [Cause.CRASH])
    assert result.measures == (Measure.FRESH_START,)
    assert_same(result, plain)


def test_implausible_numbers_are_computed_again_in_other_ways_and_never_taken(label, tmp_path):
    result = label(espresso(), limits=Limits(max_force_eV_per_A=0.01))
    assert result.status is Status.FAILED
    assert result.forces is None
    assert causes(result) == [Cause.IMPLAUSIBLE] * 3
    assert [one.measures for one in result.tries] == [
        (),
        (Measure.FRESH_START,),
        (Measure.FRESH_START, Measure.OTHER_SOLVER),
    ]
    assert "labels.max_force_eV_per_A" in result.reason
    assert "eV/Å" in (tmp_path / "label-1" / FAILURE).read_text()


def test_atoms_on_top_of_each_other_never_reach_the_program(label, silicon):
    positions = silicon.positions.copy()
    positions[1] = positions[0] + 0.1
    result = label(espresso(), frame=replace(silicon, positions=positions))
    assert causes(result) == [Cause.BAD_GEOMETRY]
    assert result.tries[0].wall_s < 1.0
