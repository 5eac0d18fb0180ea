"""The label task: one structure, tries of one reference calculation until one succeeds or nothing else can be done."""

import logging
import socket
import time
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.durable import FREE_SPACE, full_disk, write_text_durably, written_into
from pipeline.errors import MissingFileError, NotBegunError, PipelineError, PostponedError, SettingsError, TaskError
from pipeline.label_directory import (
    FAILURE,
    Tries,
    new_directory,
    read_result,
    read_tries,
    write_result,
    write_tries,
)
from pipeline.node import ANYWHERE, Node
from pipeline.records import Cause, LabelResult, LabelTask, Remark, Status, StopReason, Stopwatch, Try
from pipeline.references import Calculation, CalculationFailed, Labeler, Properties, ready_reference, reference_digest
from pipeline.references.checks import check_label
from pipeline.references.recovery import Plan, next_plan
from pipeline.selection.screening import CLOSEST_FRACTION, unphysical
from pipeline.workspace import drop_restart_files, keep_files, workspace

logger = logging.getLogger(__name__)

RESERVE_S = 60.0
"""Of the wall time a job has left, so much stays for what follows a program: its end, its files, the result."""
UNPHYSICAL = {
    StopReason.NOT_FINITE.value: "positions or cell are not finite",
    StopReason.TOO_CLOSE.value: f"atoms closer than {CLOSEST_FRACTION} of the sum of their covalent radii",
}
LEAST_S = 10.0
"""A try that could take no longer than this is left to another job."""


def run_label(task: LabelTask, node: Node = ANYWHERE) -> LabelResult:
    """Label one structure, go on where a lost worker left it, or hand back what its directory already holds.

    A failure is a result with a cause and all tries; the directory keeps their files, and the whole story in
    ``failure.txt``. A finished calculation that the directory does not take is handed back all the same, with a remark.

    Raises:
        DiskFullError: the reference cannot run for want of space: no fault of the structure.
        PostponedError: the job of this worker ends before the reference can.
    """
    directory = Path(task.scratch)
    with written_into(directory):
        pass  # the directory itself
    watch = Stopwatch()
    try:
        labeler, digest = ready_reference(task.reference)
    except Exception as error:  # noqa: BLE001  # the task boundary: packages behind references raise anything
        if (full := full_disk(error, directory)) is not None:
            raise full from None
        cause, reason = explain(error)
        failed = Try(cause=cause, reason=reason, measures=(), wall_s=watch.elapsed_s, core_s=0.0, directory="")
        return _Labelling(task, node, None, "", watch).quarantined(Tries(failed=(failed,)), traceback.format_exc())
    if (finished := read_result(task, digest)) is not None:
        return finished
    return _Labelling(task, node, labeler, digest, watch).run(labeler, read_tries(task, digest))


def explain(error: Exception) -> tuple[Cause, str]:
    """Why a try failed, from what its reference raised."""
    match error:
        case CalculationFailed():
            return error.cause, str(error)
        case TaskError():
            return Cause.BAD_GEOMETRY, str(error)
        case MissingFileError():
            return Cause.MISSING_FILE, str(error)
        case SettingsError():
            return Cause.BAD_INPUT, str(error)
        case PipelineError():
            return Cause.UNKNOWN, str(error)
    return Cause.UNKNOWN, f"the reference raised {type(error).__name__}: {error}"


class _Labelling:
    """One label on its way.

    Args:
        task: what is labelled.
        node: of this worker.
        labeler: the reference; None where there is none.
        digest: of the reference.
        watch: began with the task.
    """

    def __init__(self, task: LabelTask, node: Node, labeler: Labeler | None, digest: str, watch: Stopwatch) -> None:
        self._task, self._node, self._digest, self._watch = task, node, digest, watch
        launch = task.launch
        # a reference that can do nothing else computes in this process: it is neither launched nor timed
        self._launched = labeler is not None and bool(labeler.measures)
        self._threads = launch.threads if self._launched else task.threads
        cores = task.threads * (launch.nodes if self._launched else 1)
        self._ranks = launch.ranks_for(task.threads) if self._launched else 1
        self._cores = max(cores, self._ranks * self._threads)
        self._directory = Path(task.scratch)
        self._remarks: list[Remark] = []
        self._numbers = ""
        """Of the last try, where its reference gave any."""

    def run(self, labeler: Labeler, tries: Tries) -> LabelResult:
        """Try until one succeeds or the ladder ends.

        Raises:
            DiskFullError, PostponedError: as :func:`run_label`.
        """
        story = None
        while (plan := self._next(labeler, tries)) is not None:
            kept = new_directory(self._task, len(tries.failed) + 1)
            time_s = self._time_for(plan)
            shared = self._launched and self._task.launch.nodes > 1
            with (
                written_into(self._directory),
                workspace(kept, self._node, shared=shared, tell=self._remarks.append) as working,
            ):
                began = time.monotonic()
                try:
                    properties = self._attempt(labeler, plan, working, time_s)
                except Exception as error:  # noqa: BLE001  # the task boundary: a reference may raise anything
                    if (full := full_disk(error, working)) is not None:
                        if working == kept:
                            raise full from None
                        tries = self._leave_node(tries, time.monotonic() - began)
                        continue
                    story = "" if isinstance(error, CalculationFailed) else traceback.format_exc()
                    failed = self._failed(plan, kept, error, time.monotonic() - began)
                    tries = self._record(labeler, plan, tries, failed, working, cut=time_s < plan.time_s)
                else:
                    core_s = tries.core_s + self._cores * (time.monotonic() - began)
                    return self._finished(labeler, plan, tries, properties, working, kept, core_s)
        return self.quarantined(tries, story)

    def quarantined(self, tries: Tries, story: str | None) -> LabelResult:
        """The result of a label that failed for good.

        Args:
            tries: all of them.
            story: traceback of the last, where it says more; None: another worker made it and wrote its story.
        """
        last, path = tries.failed[-1], self._directory / FAILURE
        if story is not None or not path.exists():
            lines = [f"task {self._task.task}", last.reason, ""]
            for number, one in enumerate(tries.failed, 1):
                measures = f" with {', '.join(one.measures)}" if one.measures else ""
                lines.append(f"try {number}{measures}, {one.wall_s:.1f} s: {one.cause}: {one.reason}")
            text = "\n".join([*lines, "", self._numbers, story or ""])
            with written_into(self._directory):
                write_text_durably(path, text)
        return LabelResult(
            task=self._task.task,
            status=Status.FAILED,
            reason=f"{last.reason} (see {path})",
            energy=None,
            forces=None,
            stress=None,
            reference="",
            timing=self._watch.stop(),
            cause=last.cause,
            tries=tries.failed,
            core_s=tries.core_s,
            remarks=tuple(self._remarks),
        )

    def _next(self, labeler: Labeler, tries: Tries) -> Plan | None:
        """The next try; it goes on from one that its job cut short."""
        plan = next_plan(
            tries.failed,
            can=labeler.measures,
            launch=self._task.launch,
            ranks=self._ranks,
            max_tries=self._task.recovery.max_tries,
        )
        return replace(plan, previous=tries.cut or plan.previous) if plan is not None else None

    def _time_for(self, plan: Plan) -> float:
        """Seconds the try may take in this job.

        Raises:
            NotBegunError: none worth a try.
        """
        left_s = self._node.left_s - RESERVE_S
        if not self._launched or left_s >= plan.time_s:
            return plan.time_s
        if left_s < LEAST_S:
            raise NotBegunError(*_too_soon())
        return left_s

    def _leave_node(self, tries: Tries, wall_s: float) -> Tries:
        """Go on on the campaign's disk, after a try that found the node's own full; the time it took is counted."""
        text = f"{socket.gethostname()}: {self._node.scratch} is full"
        logger.warning("%s", text)
        remedy = "The label was made again on the campaign's disk. Free the node's, or set site.scratch."
        self._remarks.append(Remark(text=text, remedy=remedy))
        self._node = replace(self._node, scratch=None)
        return replace(tries, cut_core_s=tries.cut_core_s + self._cores * wall_s)

    def _attempt(self, labeler: Labeler, plan: Plan, working: Path, time_s: float) -> Properties:
        """One try, checked.

        Raises:
            CalculationFailed: there is no label; says why. The reference may raise anything else.
        """
        task = self._task
        if problem := unphysical(task.frame):
            raise CalculationFailed(Cause.BAD_GEOMETRY, f"no reference can label the structure: {UNPHYSICAL[problem]}")
        guess = Path(task.guess) if task.guess and plan.guess else None
        calculation = Calculation(
            directory=working,
            measures=plan.measures,
            launch=task.launch,
            host=self._node.name,
            ranks=plan.ranks,
            threads=self._threads,
            memory_GB=plan.memory_GB,
            time_s=time_s,
            previous=self._directory / plan.previous if plan.previous else None,
            guess=guess if guess is not None and guess.is_dir() else None,
        )
        self._numbers = ""
        # bad structures give 0/0 inside calculators: the checks say so in words
        with np.errstate(all="ignore"):
            properties = labeler.label(task.frame, calculation)
        # programs read files while they run; another worker's next label would be of what they hold now
        if self._launched and (now := reference_digest(task.reference)) != self._digest:
            raise CalculationFailed(
                Cause.OTHER_LEVEL,
                f"files of labels.reference changed while it was computed (level of theory {self._digest} before, {now} now).",
                "Restore them, or begin a new campaign.",
            )
        self._numbers = (
            f"energy {properties.energy} eV\nforces eV/Å\n{properties.forces}\nstress eV/Å³\n{properties.stress}\n"
        )
        check_label(properties, len(task.frame), task.limits)
        return properties

    def _failed(self, plan: Plan, kept: Path, error: Exception, wall_s: float) -> Try:
        cause, reason = explain(error)
        return Try(
            cause=cause,
            reason=reason,
            measures=plan.measures,
            wall_s=wall_s,
            core_s=self._cores * wall_s,
            directory=kept.name,
            final=isinstance(error, CalculationFailed) and error.final,
        )

    def _record(self, labeler: Labeler, plan: Plan, tries: Tries, failed: Try, working: Path, *, cut: bool) -> Tries:
        """Keep a failed try and what matters of its files, durably, before anything else is tried.

        Args:
            cut: it had less time than its plan, because its job ends.

        Raises:
            DiskFullError: the campaign's disk does not take them.
            PostponedError: it was cut short.
        """
        cut = cut and failed.cause is Cause.TIME_LIMIT
        if cut:
            after = Tries(failed=tries.failed, cut_core_s=tries.cut_core_s + failed.core_s, cut=failed.directory)
            wanted = True
        else:
            after = Tries(failed=(*tries.failed, failed), cut_core_s=tries.cut_core_s)
            following = self._next(labeler, after)
            wanted = following is not None and following.previous == failed.directory
        kept = self._directory / failed.directory
        large = keep_files(working, kept, restart=labeler.restart_files, wanted=wanted)
        if large:
            text = f"{kept}: files of a failed try were too large to be kept: {', '.join(large[:5])}"
            logger.warning("%s", text)
            self._remarks.append(Remark(text=text))
        write_tries(self._task, self._digest, after)
        if plan.previous:
            drop_restart_files(self._directory / plan.previous, labeler.restart_files)
        logger.info("%s: try %d: %s: %s", self._task.task, len(after.failed), failed.cause, failed.reason)
        if cut:
            raise PostponedError(*_too_soon())
        return after

    def _finished(
        self,
        labeler: Labeler,
        plan: Plan,
        tries: Tries,
        properties: Properties,
        working: Path,
        kept: Path,
        core_s: float,
    ) -> LabelResult:
        """The result of a try that succeeded, kept."""
        result = LabelResult(
            task=self._task.task,
            status=Status.DONE,
            reason="",
            energy=properties.energy,
            forces=properties.forces,
            stress=properties.stress,
            reference=self._digest,
            timing=self._watch.stop(),
            charges=properties.charges,
            magnetic_moments=properties.magnetic_moments,
            program=properties.program,
            tries=tries.failed,
            measures=plan.measures,
            core_s=core_s,
        )
        try:
            if self._task.keep_guess and labeler.restart_files:
                keep_files(working, kept, restart=labeler.restart_files, wanted=True, most_bytes=0)
                result = replace(result, guess=str(kept))
            write_result(self._task, result)
        except OSError as error:  # the calculation is dearer than its copy on this disk
            self._remarks.append(_not_kept(self._directory, error))
        return replace(result, remarks=tuple(self._remarks))


def _too_soon() -> tuple[str, str]:
    """What is wrong with the job of this worker, and the remedy."""
    return (
        f"the job on {socket.gethostname()} ends too soon for a reference calculation.",
        "Raise the walltime of the label jobs (site.label.walltime, site.label.drain), or lower site.launch.time_limit.",
    )


def _not_kept(directory: Path, error: OSError) -> Remark:
    where = f"{socket.gethostname()}: {directory.parent}"
    text = f"{where}: finished labels cannot be kept there until they are recorded: {error.strerror or error}"
    logger.warning("%s", text)
    return Remark(text=text, remedy=FREE_SPACE)
