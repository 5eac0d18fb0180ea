"""How far labels are converged: one structure labelled with several values of a key of the reference."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.errors import LostWorkerError, SettingsError
from pipeline.frames import FloatArray, Frame
from pipeline.initial import rattled
from pipeline.records import Cause, LabelResult, LabelTask, Limits, Result, Status
from pipeline.scan import Point, Scan
from pipeline.seeds import Stream, generator, seed_for
from pipeline.settings.campaign import CampaignSettings
from pipeline.settings.keys import nearest
from pipeline.settings.labels import Reference
from pipeline.steps import Notice, Steps
from pipeline.structures import Systems
from pipeline.units import GIGAPASCAL

POLL_S = 0.5
"""How often notices are asked for, seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanFrame:
    """The structure that is labelled again and again, and where it comes from in words."""

    frame: Frame
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One value of a scan against the finest one.

    Attributes:
        value: as in the campaign file.
        is_reference: whether this is what the others are compared with.
        energy_meV_per_atom: difference of the energies.
        force_rms_meV_per_A: root mean square over all force components of the difference.
        force_max_meV_per_A: largest difference of one atom's force vector.
        stress_rms_GPa: root mean square over the six Voigt components of the difference; None without stress.
        wall_s, core_s: seconds the label took, and core seconds it held, all tries.
        tries: how many failed before it succeeded, or in all.
        cause, reason: why there is no label.
    """

    value: str
    is_reference: bool = False
    energy_meV_per_atom: float | None = None
    force_rms_meV_per_A: float | None = None
    force_max_meV_per_A: float | None = None
    stress_rms_GPa: float | None = None
    wall_s: float = 0.0
    core_s: float = 0.0
    tries: int = 0
    cause: Cause | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Convergence:
    """What a scan found.

    Attributes:
        key: below ``labels.reference``.
        rows: from coarse to fine, or in the order given where the key has none.
        is_ordered: whether it has.
        largest_force_eV_per_A: of the structure, in the reference row; 0 where nothing could be compared.
        tolerance_meV_per_A: what is wanted of forces.
        enough: the coarsest value with force errors below the tolerance, its and those of all finer ones; empty when only
            the reference row is left.
    """

    key: str
    rows: tuple[Row, ...]
    is_ordered: bool
    largest_force_eV_per_A: float
    tolerance_meV_per_A: float
    enough: str

    @property
    def is_compared(self) -> bool:
        """Whether at least two values gave a label."""
        return sum(row.cause is None for row in self.rows) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanRun:
    """Scans to make.

    Attributes:
        settings: the campaign.
        scans: made with the same structure.
        frame: this structure.
        tolerance_meV_per_A: what is wanted of forces.
        steps: carry labels out.
        directory: existing, on a disk all workers see.
        tell: is told how far all are.
        done: is told of each label that is done.
        notice: is told what happened to the machine meanwhile.
    """

    settings: CampaignSettings
    scans: Sequence[Scan]
    frame: Frame
    tolerance_meV_per_A: float
    steps: Steps
    directory: Path
    tell: Callable[[str], None]
    done: Callable[[str], None]
    notice: Callable[[Notice], None]

    def run(self) -> list[Convergence]:
        """Label the structure with every value, as many at a time as the site can; the same reference only once.

        Raises:
            SiteError: the machine could not carry it out.
        """
        wanted: dict[str, tuple[str, Reference]] = {}
        for scan in self.scans:
            for point in scan.points:
                wanted.setdefault(_name(point), (f"{scan.key} = {point.text}", point.reference))
        futures = {
            self.steps.submit(self._task(number, reference)): name
            for number, (name, (_, reference)) in enumerate(wanted.items())
        }
        results = self._results(futures, {name: text for name, (text, _) in wanted.items()})
        return [
            compare(scan, [results[_name(point)] for point in scan.points], self.frame, self.tolerance_meV_per_A)
            for scan in self.scans
        ]

    def _task(self, number: int, reference: Reference) -> LabelTask:
        labels = self.settings.labels
        return LabelTask(
            task=f"scan-{number}",
            round=0,
            item=number,
            frame=self.frame,
            reference=reference,
            scratch=str(self.directory / f"scan-{number}"),
            threads=self.settings.site.label_threads,
            # what a coarse value gives is to be seen, not refused
            limits=Limits(max_force_eV_per_A=labels.max_force_eV_per_A),
            recovery=labels.recovery,
            launch=self.settings.site.label_launch,
        )

    def _results(self, futures: dict[Future[Result], str], texts: dict[str, str]) -> dict[str, LabelResult | str]:
        """Results by name of the reference; a text where the worker was lost."""
        results: dict[str, LabelResult | str] = {}
        pending = set(futures)
        self.tell(f"scanning: {len(futures)} labels")
        while pending:
            finished, pending = wait(pending, timeout=POLL_S, return_when=FIRST_COMPLETED)
            for notice in self.steps.notices():
                self.notice(notice)
            for future in finished:
                name = futures[future]
                try:
                    result = future.result()
                except LostWorkerError as error:
                    results[name] = str(error)
                    self.done(f"{texts[name]}: {Cause.WORKER_LOST.value}")
                    continue
                assert isinstance(result, LabelResult)
                results[name] = result
                took = f"{result.timing.wall_s:.3g} s"
                failed = "" if result.status is Status.DONE else f", failed: {_cause(result).value}"
                self.done(f"{texts[name]}: {took}{failed}")
        return results


def scan_frame(wanted: str | None, frames: Systems, settings: CampaignSettings) -> ScanFrame:
    """The structure to scan.

    Args:
        wanted: ``SYSTEM:INDEX``, a start structure as it is; ``SYSTEM`` or None, a rattled one: without forces in it, nothing
            is seen of their errors.
        frames: start structures by system.
        settings: the campaign.

    Raises:
        SettingsError: there is no such system or structure.
    """
    name, separator, index = (wanted or next(iter(frames))).partition(":")
    if name not in frames:
        close = nearest(name, list(frames))
        hint = f"Did you mean {close}?" if close else f"The systems are {', '.join(frames)}."
        raise SettingsError(f"--scan-frame {wanted}: there is no system {name}.", hint)
    group = frames[name]
    if not separator:
        std_A = settings.labels.initial_rattle_A
        rng = generator(seed_for(settings.seed, Stream.START, 0, 0))
        frame = rattled(group[0], std_A=std_A, rng=rng)
        return ScanFrame(frame=frame, text=f"start structure 0 of {name}, rattled by {std_A:g} Å")
    if not index.isdecimal() or int(index) >= len(group):
        count = f"{len(group)} start structure{'s' if len(group) != 1 else ''}"
        raise SettingsError(f"--scan-frame {wanted}: {name} has {count}.", "Count from 0: SYSTEM:INDEX.")
    return ScanFrame(frame=group[int(index)], text=f"start structure {index} of {name}")


def compare(scan: Scan, results: Sequence[LabelResult | str], frame: Frame, tolerance_meV_per_A: float) -> Convergence:
    """Errors of each value against the finest one that gave a label.

    Args:
        scan: its points, the finest last.
        results: of each point, or why its worker was lost.
        frame: the structure.
        tolerance_meV_per_A: what is wanted of forces.
    """
    good = [result for result in results if isinstance(result, LabelResult) and result.status is Status.DONE]
    finest = good[-1] if good else None
    rows = [_row(point, result, finest, len(frame)) for point, result in zip(scan.points, results, strict=True)]
    enough = ""
    for row in reversed(rows):
        if row.cause is not None or row.is_reference:
            continue  # a finer value that gave no label says nothing
        assert row.force_max_meV_per_A is not None
        if row.force_max_meV_per_A >= tolerance_meV_per_A:
            break
        enough = row.value
    largest = 0.0 if finest is None else float(np.linalg.norm(_forces(finest), axis=1).max())
    return Convergence(
        key=scan.key,
        rows=tuple(rows),
        is_ordered=scan.is_ordered,
        largest_force_eV_per_A=largest,
        tolerance_meV_per_A=tolerance_meV_per_A,
        enough=enough,
    )


def _row(point: Point, result: LabelResult | str, finest: LabelResult | None, n_atoms: int) -> Row:
    if isinstance(result, str):
        return Row(value=point.text, cause=Cause.WORKER_LOST, reason=result)
    # references without a program may not say what they held
    core_s = result.core_s or result.timing.cpu_s
    row = Row(value=point.text, wall_s=result.timing.wall_s, core_s=core_s, tries=len(result.tries))
    if result.status is not Status.DONE:
        return replace(row, cause=_cause(result), reason=result.reason)
    assert finest is not None
    assert result.energy is not None
    assert finest.energy is not None
    forces = 1e3 * (_forces(result) - _forces(finest))
    stress = None
    if result.stress is not None and finest.stress is not None:
        stress = _rms(result.stress - finest.stress) / GIGAPASCAL
    return replace(
        row,
        is_reference=result is finest,
        energy_meV_per_atom=1e3 * (result.energy - finest.energy) / n_atoms,
        force_rms_meV_per_A=_rms(forces),
        force_max_meV_per_A=float(np.linalg.norm(forces, axis=1).max()),
        stress_rms_GPa=stress,
    )


def _forces(result: LabelResult) -> FloatArray:
    assert result.forces is not None
    return result.forces


def _cause(result: LabelResult) -> Cause:
    return result.cause or Cause.UNKNOWN


def _rms(differences: FloatArray) -> float:
    return float(np.sqrt(np.mean(differences**2)))


def _name(point: Point) -> str:
    """Equal for equal references."""
    return point.reference.model_dump_json()
