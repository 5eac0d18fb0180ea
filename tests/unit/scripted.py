"""A reference whose program is a small script of ours that does what each try is told to do: good, crash, hang, …"""

import json
import re
import sys
from pathlib import Path
from typing import Self

import numpy as np
from ase import Atoms

from pipeline.frames import Frame
from pipeline.records import Cause, LabelTask, Measure
from pipeline.references import Calculation, CalculationFailed, Labeler, Properties
from pipeline.references.program import run_program
from pipeline.settings.labels import ASEReference, Reference

PROGRAM = """
import json, os, sys, time
from pathlib import Path
told = json.loads(sys.argv[1])
restart = Path(told["previous"] or "nowhere") / "out" / "x.density"
told["restart"] = restart.read_text() if restart.exists() else None
with open(sys.argv[2], "a") as stream:
    stream.write(json.dumps(told) + "\\n")
number = sum(1 for _ in open(sys.argv[2]))
Path("out").mkdir()
Path("out/x.density").write_text(f"density of try {number}")
outcomes = sys.argv[3:]
outcome = outcomes[min(number, len(outcomes)) - 1]
print("Scripted 1.0", outcome, flush=True)
match outcome:
    case "slow" | "hang":
        time.sleep(60)
    case "crash":
        os.kill(os.getpid(), 11)
    case "change":
        Path(sys.argv[2]).with_name("changed").touch()
    case "disk_full":
        sys.exit("write error: No space left on device")
"""


class ScriptedReference(Labeler):
    """Runs :data:`PROGRAM` and believes what it says."""

    measures = frozenset(Measure)
    restart_files = ("out",)

    def __init__(self, told: str, outcomes: list[str]) -> None:
        self._told, self._outcomes = told, outcomes

    @classmethod
    def ready(cls, settings: Reference) -> tuple[Self, str]:
        """What :func:`pipeline.references.ready_reference` gives for the tasks of :func:`script`."""
        assert isinstance(settings, ASEReference)
        return cls(**settings.arguments), "scripted"

    @staticmethod
    def digest(settings: Reference) -> str:
        """What :func:`pipeline.references.reference_digest` gives: another one once a file ``changed`` lies beside ``told``."""
        assert isinstance(settings, ASEReference)
        return "changed" if Path(settings.arguments["told"]).with_name("changed").exists() else "scripted"

    @property
    def provides_stress(self) -> bool:
        """Never."""
        return False

    def label(self, frame: Frame, calculation: Calculation) -> Properties:
        """Energy 1 eV, forces 1 eV/Å; with ``huge`` 100 eV/Å."""
        told = {
            "directory": str(calculation.directory),
            "measures": list(calculation.measures),
            "ranks": calculation.ranks,
            "host": calculation.host,
            "time_s": calculation.time_s,
            "previous": str(calculation.previous) if calculation.previous else None,
            "guess": str(calculation.guess) if calculation.guess else None,
        }
        arguments = ["-c", PROGRAM, json.dumps(told), self._told, *self._outcomes]
        ended = run_program(sys.executable, arguments, calculation, output="program.out")
        found = re.match(r"Scripted 1.0 (\w+)", ended.output)
        outcome = found[1] if found else "crash"
        if ended.code != 0:
            raise CalculationFailed(Cause.CRASH, f"exit status {ended.code}")
        if outcome not in ("good", "huge", "change"):
            raise CalculationFailed(Cause(outcome), f"the program said {outcome}")
        size = 100.0 if outcome == "huge" else 1.0
        return Properties(
            energy=1.0,
            forces=np.array([[size, 0, 0], [-size, 0, 0]]),
            stress=None,
            charges=np.array([0.5, -0.5]),
            program="Scripted 1.0",
        )


def script(scratch: Path, *outcomes: str) -> LabelTask:
    """A label whose n-th try, whoever makes it, ends as told; those after the last like the last."""
    # beside the tries of the first task of a name, which may be asked for again under another
    told = scratch.with_name("label-1") / "told.jsonl"
    frame = Frame.from_atoms(Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.8]]), system="h2")
    reference = ASEReference(calculator="scripted", arguments={"told": str(told), "outcomes": list(outcomes)})
    return LabelTask(
        task=scratch.name, round=0, item=0, frame=frame, reference=reference, scratch=str(scratch), threads=1
    )
