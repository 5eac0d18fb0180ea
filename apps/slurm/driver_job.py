"""The driver as a SLURM job: why it was asked to stop, how long it has, and who goes on after it.

What SLURM does (22.05, measured; the batch script has become the driver by ``exec``):

================================  =====================  =========================  ===========================
event                             signals                state while it handles it  afterwards
================================  =====================  =========================  ===========================
``--signal=B:TERM@t``             TERM, t to t + 60 s    RUNNING                    killed at the wall time
                                  before the wall time
``scancel --batch --signal=TERM`` TERM                   RUNNING                    nothing
``scancel --signal=TERM``         none (steps only)      RUNNING                    nothing
``scancel``                       CONT, TERM to every    COMPLETING                 KILL after KillWait
                                  process of the job                                (30 s by default)
requeue, preemption               as scancel             COMPLETING, its Restarts   KILL, then SLURM starts the
                                                         already one higher         job again: same number
node lost                         none                   -                          as requeue, --requeue given
================================  =====================  =========================  ===========================

So the state of the job tells it all: while it is RUNNING the driver must see to a successor itself.
"""

import os
import shlex
import time
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Self

from apps.slurm.client import cancel_jobs, cancel_named, driver_jobs, jobs_named, restarts_of, submit_job
from apps.slurm.names import DRIVER, job_name, worker_names
from apps.slurm.script import OUTPUT
from pipeline.errors import SettingsError, SiteError
from pipeline.events import Event, Gathered, LabelFailed, Labelled, Selected, Trained, Walked

MARGIN_S = 60.0
"""What remains for submitting the next driver and ending the workers, seconds; at most half of the notice SLURM gives."""
FRUITLESS = 3
"""So many drivers in a row may end without having got anywhere."""
TRIES, PAUSE_S = 5, 5.0
"""Of submitting the next driver: a controller may be busy for a moment."""

PROGRESS = (Walked, Selected, Labelled, LabelFailed, Gathered, Trained)


class Following(StrEnum):
    """Who goes on after a driver that was told to stop."""

    NEW_JOB = "new job"
    SAME_JOB = "same job"
    NOBODY_CANCELLED = "nobody: a person cancelled the job"
    NOBODY_STOPPED = "nobody: a person stopped the campaign"
    NOBODY_FRUITLESS = "nobody: the last drivers got nowhere"


def who_goes_on(*, is_ending: bool, is_requeued: bool, stop_wanted: bool, got_on: bool, fruitless: int) -> Following:
    """Who goes on after a driver that was told to stop.

    Args:
        is_ending: its job is no longer running.
        is_requeued: SLURM starts the job again.
        stop_wanted: there is a stop file.
        got_on: something came of this driver, or its workers waited for nodes.
        fruitless: drivers in a row before it of which nothing came.
    """
    if is_ending:
        return Following.SAME_JOB if is_requeued else Following.NOBODY_CANCELLED
    if stop_wanted:
        return Following.NOBODY_STOPPED
    if not got_on and fruitless + 1 >= FRUITLESS:
        return Following.NOBODY_FRUITLESS
    return Following.NEW_JOB


@dataclass(slots=True)
class DriverJob:
    """The job that this driver is.

    Attributes:
        id: SLURM's number.
        prefix: of the names of the campaign's jobs.
        script: what it was started with.
        stop_before_s: how long before its wall time it is told to stop, seconds.
        fruitless: drivers in a row before this one that got nowhere.
        restarts: how often SLURM had started this job anew when this driver began.
        got_on: something came of this driver, or its workers waited for nodes.
        signalled: it was told to stop.
        is_cancelled: and the job is ending.
    """

    id: str
    prefix: str
    script: Path
    stop_before_s: float
    fruitless: int
    restarts: int = 0
    got_on: bool = False
    signalled: bool = False
    is_cancelled: bool = False
    _leave_at: float = field(default=float("inf"))

    @classmethod
    def here(cls, prefix: str, script: Path, *, stop_before_s: float, fruitless: int) -> Self:
        """The job that this process runs in.

        Raises:
            SettingsError: it runs in none.
        """
        number = os.environ.get("SLURM_JOB_ID")
        if not number:
            raise SettingsError("--as-job is for the driver's batch script.", "Use `farwalk submit`, or leave it out.")
        restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        return cls(number, prefix, script, stop_before_s, fruitless, restarts)

    def take_note(self, event: Event) -> None:
        """An event of this driver."""
        self.got_on = self.got_on or isinstance(event, PROGRESS)

    def told_to_stop(self) -> str:
        """A signal came: find out why and how long there is; says it in one line. May take seconds."""
        self.signalled, since = True, time.monotonic()
        try:
            jobs = jobs_named([job_name(self.prefix, DRIVER), *worker_names(self.prefix)])
        except SiteError as error:
            self._leave_by(since + self.stop_before_s - self._margin_s)
            return f"told to stop, and SLURM does not say why ({error.message.rstrip('.')})"
        own = next((job for job in jobs if job.id == self.id), None)
        self.got_on = self.got_on or any(job.waits for job in jobs if job.id != self.id)
        if own is None or own.ends:
            self.is_cancelled = True
            self._leave_by(since)
            with suppress(SiteError):  # now, not only on the way out: SLURM kills this process soon
                cancel_named(worker_names(self.prefix))
            return f"job {self.id} was cancelled or requeued: leaving at once"
        left = min(self.stop_before_s, own.left_s if own.left_s is not None else self.stop_before_s)
        self._leave_by(since + left - self._margin_s)
        rest = max(left - self._margin_s, 0.0)
        return f"job {self.id} was told to stop: finishing what is in flight, for {rest:.0f} s at most"

    def must_leave(self) -> bool:
        """Whether the time for what is in flight is over."""
        return time.monotonic() >= self._leave_at

    @property
    def _margin_s(self) -> float:
        return min(MARGIN_S, self.stop_before_s / 2)

    def _leave_by(self, when: float) -> None:
        self._leave_at = min(self._leave_at, when)

    def hand_over(self, stop_file: Path) -> str:
        """Submit the next driver where this one has to; says what happened in one line.

        Call it once nothing is recorded any more, and before the workers are ended, which may take a slow SLURM minutes: the
        next driver waits for this job's end.

        Args:
            stop_file: a person who wants the campaign to stop has made it.

        Raises:
            SiteError: nobody goes on, and a person must act.
        """
        again = f"Go on with: sbatch {shlex.quote(str(self.script))}"
        is_ending = self.is_cancelled or self._is_ending()
        following = who_goes_on(
            is_ending=is_ending,
            is_requeued=is_ending and restarts_of(self.id) > self.restarts,
            stop_wanted=stop_file.exists(),
            got_on=self.got_on,
            fruitless=self.fruitless,
        )
        match following:
            case Following.SAME_JOB:
                return f"job {self.id} is requeued: SLURM starts it again"
            case Following.NOBODY_CANCELLED:
                return f"job {self.id} was cancelled, nobody goes on. {again}"
            case Following.NOBODY_STOPPED:
                return f"stopped on request. {again}"
            case Following.NOBODY_FRUITLESS:
                raise SiteError(
                    f"{FRUITLESS} drivers in a row ended before anything came of them: no further one is submitted.",
                    f"See {OUTPUT} and `farwalk status`; a longer site.driver.walltime may help. Then `farwalk submit` again.",
                )
            case Following.NEW_JOB:
                number = self._submit(0 if self.got_on else self.fruitless + 1)
        if stop_file.exists():  # `farwalk stop` looked at the queue a moment too early
            cancel_jobs([number])
            return f"stopped on request. {again}"
        return f"handed over to job {number}"

    def _is_ending(self) -> bool:
        """Whether the job was cancelled since it was told to stop."""
        try:
            jobs = driver_jobs(self.prefix)
        except SiteError:
            return False
        return all(job.id != self.id for job in jobs)

    def _submit(self, fruitless: int) -> str:
        attempt = 1
        while True:
            try:
                return submit_job(self.script, [str(fruitless)])
            except SiteError as error:
                if attempt == TRIES:
                    raise SiteError(error.message, f"{error.remedy} Then `farwalk submit` again.".lstrip()) from None
            attempt += 1
            time.sleep(PAUSE_S)
