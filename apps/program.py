"""Whether the program of a reference starts on a worker for labels: asked by ``farwalk check`` before hours are spent."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from parsl.app.app import python_app

from apps.retries import LOST, lost_for_good
from apps.worker import find_node
from pipeline.errors import SiteError
from pipeline.records import Remark
from pipeline.references import Calculation, CalculationFailed
from pipeline.references.started import Started, start_program
from pipeline.settings.dft import CP2KReference, QuantumEspressoReference
from pipeline.settings.launch import LaunchSettings
from pipeline.settings.site import InlineSite, Site, SlurmSite

DFTReference = CP2KReference | QuantumEspressoReference


def look_at_program(reference: DFTReference, launch: LaunchSettings, ranks: int, directory: str) -> Started | Remark:
    """Start the program from the process that calls this.

    Args:
        reference: whose program.
        launch: how.
        ranks: of one label.
        directory: on a disk that all nodes see.

    Returns:
        What started, or why it did not and what to do.
    """
    with tempfile.TemporaryDirectory(prefix="program-", dir=directory) as own:
        host = find_node(os.environ).name
        calculation = Calculation(directory=Path(own), launch=launch, host=host, ranks=ranks, threads=launch.threads)
        try:
            return start_program(reference, calculation)
        except CalculationFailed as failed:
            return Remark(text=failed.reason, remedy=failed.remedy)


def ask_program(site: Site, reference: DFTReference, directory: Path, tell: Callable[[str], None]) -> Started:
    """Have a label worker of the loaded site start the program, as many ranks as a label takes.

    Args:
        site: as it is loaded.
        reference: whose program.
        directory: existing, on a disk that driver and workers share.
        tell: is told what begins.

    Raises:
        SiteError: it does not start.
        LostWorkerError: the worker died.
    """
    launch = site.launch
    ranks = launch.ranks_for(site.label_threads)
    tell(f"starting the program of {reference.kind}")
    asked = (reference, launch, ranks, str(directory))
    if isinstance(site, InlineSite):
        answer = look_at_program(*asked)
    else:
        label = site.routes["label"]
        try:
            answer = python_app(look_at_program, executors=[label])(*asked).result()
        except LOST as error:
            raise lost_for_good(error, f"site.{label}" if isinstance(site, SlurmSite) else None) from error
    if isinstance(answer, Remark):
        raise SiteError(f"labels.reference, on a label worker: {answer.text}", answer.remedy)
    return answer
