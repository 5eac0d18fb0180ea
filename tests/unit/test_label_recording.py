"""What becomes of labels in a campaign: all that is known of them is recorded, faults pause it, levels are never mixed."""

import os
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.io import read
from fabricated import TIMING, MadeUpSteps, carry_out, failed_label, settings, systems

from pipeline.campaign import Campaign
from pipeline.errors import DiskFullError, NotBegunError, PostponedError, TaskError
from pipeline.event_log import encode
from pipeline.events import EndReason, LabelFailed, Labelled, Noticed, Stopped, TaskLost
from pipeline.export import ExportFormat, export
from pipeline.guesses import Guesses
from pipeline.quarantine import quarantined, requeue
from pipeline.records import Cause, LabelTask, Measure, Try
from pipeline.store import Store

TRIES = tuple(
    Try(cause=cause, reason="no", measures=measures, wall_s=1.0, core_s=4.0, directory=f"try-{k}")
    for k, (cause, measures) in enumerate([(Cause.NOT_CONVERGED, ()), (Cause.TIME_LIMIT, (Measure.MORE_STEPS,))])
)
CP2K = {"kind": "cp2k", "preset": "pbe", "guess": "nearest"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("pipeline.driver.POLL_S", 0.001)
    monkeypatch.setattr("pipeline.driver.GATHER_S", 0.0005)


def run(directory: Path, label, **changes):
    """A campaign whose labels are made by a function of their task; steps and how it ended."""
    steps = MadeUpSteps(lambda task: label(task) if isinstance(task, LabelTask) else carry_out(task))
    chosen = settings(**{"labels__budget": 18, **changes})
    campaign = Campaign.create_or_open(chosen, systems(), directory)
    return campaign, steps, campaign.run(steps)


def events_of(store: Store, kind):
    return [event for event in store.reading() if isinstance(event, kind)]


def by_program(task):
    """A label as a program makes it, with charges, at the third try."""
    return replace(
        carry_out(task),
        program="CP2K 2023.1",
        charges=np.full(len(task.frame), 0.25),
        magnetic_moments=np.arange(float(len(task.frame))),
        tries=TRIES,
        measures=(Measure.MORE_STEPS, Measure.MORE_TIME),
        core_s=12.5,
    )


def test_all_that_is_known_of_a_label_is_recorded_and_exported(tmp_path):
    campaign, _, _ = run(tmp_path / "c", lambda task: by_program(task) if task.item % 2 else carry_out(task))
    store, label = campaign.store, campaign.store.labels(campaign.store.state())[1]
    event = next(event for event in events_of(store, Labelled) if event.number == 1)
    assert (event.reference, event.tries, event.core_s) == ("made-up", TRIES, 12.5)
    assert event.measures == (Measure.MORE_STEPS, Measure.MORE_TIME)
    assert (label.program, label.cost_cpu_s) == ("CP2K 2023.1", 12.5)
    assert label.charges.tolist() == [0.25] * 4
    assert label.magnetic_moments.tolist() == [0.0, 1.0, 2.0, 3.0]
    without = store.labels(store.state())[0]
    assert (without.charges, without.magnetic_moments, without.program) == (None, None, "")
    assert without.cost_cpu_s == TIMING.cpu_s
    export(store.root, ExportFormat.EXTXYZ, tmp_path / "labels.extxyz")
    first, second = read(tmp_path / "labels.extxyz", index=":2")
    assert "charges" not in first.calc.results
    assert second.get_charges().tolist() == [0.25] * 4
    assert second.get_magnetic_moments().tolist() == [0.0, 1.0, 2.0, 3.0]
    assert second.info["program"] == "CP2K 2023.1"


def test_a_failed_label_is_recorded_with_its_cause_tries_and_cost(tmp_path):
    def label(task):
        failed = replace(failed_label(task), cause=Cause.TIME_LIMIT, tries=TRIES, core_s=8.0)
        return failed if task.item == 3 else carry_out(task)

    campaign, _, _ = run(tmp_path / "c", label)
    for failure in events_of(campaign.store, LabelFailed):
        assert (failure.cause, failure.tries, failure.core_s) == (Cause.TIME_LIMIT, TRIES, 8.0)


def test_labelling_pauses_when_one_label_after_the_other_fails_and_goes_on_when_it_is_mended(tmp_path):
    def broken(task):
        if task.round == 0 or task.item == 0:
            return carry_out(task)
        return replace(failed_label(task, "no pseudopotential Cu.upf"), cause=Cause.MISSING_FILE)

    # rounds of three labels: the rule looks over several of them
    changes = {"selection__batch": 3, "labels__recovery": {"pause_after": 4, "pause_share": 0.4}}
    with pytest.raises(TaskError) as caught:
        run(tmp_path / "c", broken, **changes)
    store = Store(tmp_path / "c")
    (stopped,) = events_of(store, Stopped)
    assert stopped.reason is EndReason.LABELS_PAUSED
    assert re.search(r"[56] of the last 10 labels failed for one cause, missing_file", stopped.message)
    assert "no pseudopotential Cu.upf" in caught.value.message
    assert str(store.root / "scratch" / "farwalk-label-r0003-000") in caught.value.message
    for words in ("basis_files", f"farwalk relabel {store.root}", "farwalk run"):
        assert words in caught.value.remedy
    assert stopped.remedy in caught.value.remedy
    requeue(store, None, [Cause.MISSING_FILE])
    _, steps, outcome = run(tmp_path / "c", carry_out, **changes)
    assert outcome.reason is EndReason.BUDGET
    assert (outcome.state.failed, outcome.state.spent) == (0, 18)
    assert steps.names[:2] == ["label-r0001-0001", "label-r0001-0002"]


def test_a_pause_waits_for_labels_in_flight_and_is_not_undone_by_them(tmp_path):
    class OneAtATime(MadeUpSteps):
        """Labels of round 1 end one after the other, the failed ones first."""

        held: list = []  # noqa: RUF012  # one object

        def _end(self, future, task) -> None:
            if isinstance(task, LabelTask) and task.round == 1:
                self.held.append((future, task))
            else:
                super()._end(future, task)

        def poll(self) -> bool:
            if self.held:
                future, task = self.held.pop(0)
                failed = replace(failed_label(task), cause=Cause.CRASH)
                future.set_result(failed if task.item < 7 else carry_out(task))
            return False

    chosen = settings(labels__budget=60, walkers__count=24, selection__batch=20, selection__growth=2.0)
    campaign, steps = Campaign.create_or_open(chosen, systems(), tmp_path / "c"), OneAtATime()
    with pytest.raises(TaskError, match="7 of the last 12 labels failed for one cause, crash"):
        campaign.run(steps, stop_requested=steps.poll)
    state = campaign.store.state()
    assert state.stopped.reason is EndReason.LABELS_PAUSED
    assert (state.round, len(state.arrived), len(state.round_failures)) == (1, 13, 7)
    assert steps.names[-1].startswith("label"), "nothing else was handed out"


def test_three_labels_are_enough_when_nothing_works_at_all(tmp_path):
    def label(task):
        return replace(failed_label(task, "cp2k.psmp cannot be started"), cause=Cause.MISSING_PROGRAM)

    steps = MadeUpSteps(label, capacity=1)
    campaign = Campaign.create_or_open(settings(), systems(), tmp_path / "c")
    with pytest.raises(TaskError, match=r"cp2k\.psmp cannot be started.*site\.launch\.programs"):
        campaign.run(steps)
    assert len(steps.names) == 3


def test_labels_of_another_level_of_theory_are_not_taken_and_pause_labelling(tmp_path):
    def label(task):
        other = task.round == 1 and task.item == 1
        result = replace(carry_out(task), reference="dzvp" if other else "tzvp")
        Path(task.scratch).mkdir(parents=True, exist_ok=True)
        return result

    force_field = tmp_path / "mine.xml"
    force_field.write_text("later than the campaign")
    pdb = tmp_path / "t.pdb"
    pdb.write_text("")
    reference = {"kind": "openmm", "topology": str(pdb), "force_field": [str(force_field)]}
    run(tmp_path / "c", label, labels__reference=reference, labels__budget=10)
    future = 4e9
    os.utime(force_field, (future, future))
    with pytest.raises(TaskError, match="another level of theory") as caught:
        run(tmp_path / "c", label, labels__reference=reference)
    assert f"changed since the campaign began: {force_field}" in caught.value.message
    assert "begin a new campaign" in caught.value.remedy
    store = Store(tmp_path / "c")
    (failure,) = events_of(store, LabelFailed)
    assert failure.cause is Cause.OTHER_LEVEL
    assert store.scratch_of("label-r0001-0001").is_dir()
    assert {label.reference for label in store.labels(store.state())} == {store.state().reference} == {"tzvp"}
    requeue(store, None, None)
    _, _, outcome = run(
        tmp_path / "c", lambda task: replace(carry_out(task), reference="tzvp"), labels__reference=reference
    )
    assert outcome.reason is EndReason.BUDGET


def test_a_campaign_whose_events_do_not_name_the_level_of_theory_refuses_another_one_too(tmp_path):
    for name in ("c", "d"):
        store = run(tmp_path / name, carry_out, labels__budget=10)[0].store
        events = [replace(event, reference="") if isinstance(event, Labelled) else event for event in store.reading()]
        store.log_path.write_bytes(b"".join(encode(event, number) for number, event in enumerate(events)))
        assert store.state().reference == ""
    with pytest.raises(TaskError, match=r"another level of theory \(dzvp\) than the labels before it \(made-up\)"):
        run(tmp_path / "c", lambda task: replace(carry_out(task), reference="dzvp"))
    _, _, outcome = run(tmp_path / "d", carry_out)
    assert outcome.reason is EndReason.BUDGET


def test_a_label_whose_job_ends_too_soon_is_asked_for_again_three_times(tmp_path):
    class Postponing(MadeUpSteps):
        def __init__(self, times: int) -> None:
            super().__init__()
            self.times = times

        def _end(self, future, task) -> None:
            if task.task == "label-r0001-0002" and self.names.count(task.task) <= self.times:
                future.set_exception(PostponedError("its job ends too soon.", "Raise site.label.drain."))
            else:
                super()._end(future, task)

    for times in (3, 4):
        campaign = Campaign.create_or_open(settings(labels__budget=18), systems(), tmp_path / f"{times}")
        assert campaign.run(Postponing(times)).reason is EndReason.BUDGET
        assert len(events_of(campaign.store, TaskLost)) == 3
        failures = events_of(campaign.store, LabelFailed)
        assert [(row.cause, row.reason) for row in failures] == [
            (Cause.TIME_LIMIT, "its job ends too soon. Raise site.label.drain.")
        ] * (times == 4)


def test_a_label_that_no_worker_began_is_asked_for_again_later_and_never_given_up(tmp_path, monkeypatch):
    wait_s, times = 0.1, 8
    monkeypatch.setattr("pipeline.driver.LATER_S", wait_s)
    handed_out: list[float] = []

    class Ending(MadeUpSteps):
        def _end(self, future, task) -> None:
            if task.task == "label-r0001-0002":
                handed_out.append(time.monotonic())
                if len(handed_out) <= times:
                    future.set_exception(NotBegunError("the job on nid7 ends too soon.", "Raise site.label.drain."))
                    return
            super()._end(future, task)

    campaign = Campaign.create_or_open(settings(labels__budget=18), systems(), tmp_path / "c")
    assert campaign.run(Ending()).reason is EndReason.BUDGET
    assert len(handed_out) == times + 1
    assert min(np.diff(handed_out)) >= wait_s
    assert not events_of(campaign.store, TaskLost)
    assert not events_of(campaign.store, LabelFailed)
    (noticed,) = events_of(campaign.store, Noticed)
    assert noticed.text == "the job on nid7 ends too soon."


def test_a_stop_does_not_wait_for_labels_that_are_asked_for_later(tmp_path):
    class Ending(MadeUpSteps):
        def _end(self, future, task) -> None:
            if isinstance(task, LabelTask) and task.round == 1:
                future.set_exception(NotBegunError("the job on nid7 ends too soon."))
            else:
                super()._end(future, task)

    steps = Ending()
    campaign = Campaign.create_or_open(settings(labels__budget=18), systems(), tmp_path / "c")
    outcome = campaign.run(steps, stop_requested=lambda: "label-r0001-0000" in steps.names)
    assert outcome.reason is EndReason.INTERRUPTED
    assert run(tmp_path / "c", carry_out)[2].reason is EndReason.BUDGET


def test_restart_files_of_labels_are_kept_and_the_nearest_are_given_to_the_next(tmp_path):
    seen: dict[str, LabelTask] = {}

    def label(task):
        seen[task.task] = task
        assert not task.guess or (Path(task.guess) / "x.wfn").is_file()
        restart = Path(task.scratch) / "restart"
        restart.mkdir(parents=True)
        (restart / "x.wfn").write_text(task.task)
        return replace(carry_out(task), guess=str(restart))

    campaign, _, outcome = run(tmp_path / "c", label, labels__reference=CP2K)
    assert outcome.reason is EndReason.BUDGET
    assert all(task.keep_guess for task in seen.values())
    assert len([task for task in seen.values() if task.guess]) >= 8
    assert not any(campaign.store.scratch.iterdir())
    kept = Guesses(campaign.store.guesses)
    for task in seen.values():
        assert (Path(kept.nearest(task.frame)) / "x.wfn").read_text() == task.task


def test_labels_of_a_reference_that_starts_from_atoms_keep_nothing(tmp_path):
    seen = []
    campaign, _, _ = run(tmp_path / "c", lambda task: (seen.append(task), carry_out(task))[1])
    assert not any(task.keep_guess or task.guess for task in seen)
    assert not campaign.store.guesses.exists()


def test_tasks_know_the_energies_that_the_labels_before_their_round_make_plausible(tmp_path):
    seen: list[LabelTask] = []
    campaign, _, _ = run(
        tmp_path / "c", lambda task: (seen.append(task), carry_out(task))[1], labels__energy_window_eV_per_atom=2.5
    )
    labels = campaign.store.labels(campaign.store.state())
    for task in seen:
        known = [label.energy for label in labels if label.round < task.round]
        expected = None if not known else (np.mean(known) - 10.0, np.mean(known) + 10.0)
        assert task.limits.energy_eV == (None if expected is None else pytest.approx(expected))


def test_what_a_killed_driver_left_of_recorded_labels_is_removed_by_the_next(tmp_path):
    asked = iter([False])
    campaign = Campaign.create_or_open(settings(labels__budget=18), systems(), tmp_path / "c")
    campaign.run(MadeUpSteps(capacity=3), stop_requested=lambda: next(asked, True))
    store = campaign.store
    (first, *_) = events_of(store, Labelled)
    assert first.round == store.state().round
    store.scratch_of("label-r0000-0000").mkdir()
    run(tmp_path / "c", carry_out)
    assert not any(store.scratch.iterdir())


def test_a_full_disk_is_no_failure_of_a_label(tmp_path):
    class Full(MadeUpSteps):
        def _end(self, future, task) -> None:
            if task.task == "label-r0001-0002" and self.names.count(task.task) == 1:
                future.set_exception(DiskFullError("/scratch: cannot be written.", "Free space."))
            else:
                super()._end(future, task)

    campaign = Campaign.create_or_open(settings(labels__budget=18), systems(), tmp_path / "c")
    assert campaign.run(Full()).reason is EndReason.BUDGET
    assert not quarantined(campaign.store.reading())
