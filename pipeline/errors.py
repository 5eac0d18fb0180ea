"""Errors a person or a task can act on.

The tree, by who must act::

    PipelineError
    ├── SettingsError   the campaign file or an option is wrong: the user edits it
    │   └── MissingFileError  a file it names is not there: the user brings it
    ├── StructureError  a structure file cannot be used: the user mends or replaces it
    ├── SiteError       the machine is not set up as the site says: the user or the administrator
    ├── StoreError      the campaign directory cannot be used: the user moves, frees or unlocks it
    │   └── DiskFullError   a disk takes no more: the user frees space, and what was to be written is written then
    ├── ModelError      a model file is missing, damaged or of another version
    ├── TaskError       a task was asked for something it cannot do: a bug or a bad input
    ├── LostWorkerError the process or node that carried out a task died, more than once
    └── PostponedError  the job ends before the task can: it goes on in another job
        └── NotBegunError   so soon that nothing was begun

Expected failures of a task (SCF not converged, walker exploded, time limit) are a ``Status`` in a result, never one of these.
"""


class PipelineError(Exception):
    """Base of all errors that farwalk raises on purpose.

    Both texts stay in ``args`` so that the exception survives pickling across processes: an exception that does not
    unpickle kills a Parsl executor's result thread and hangs every later task.

    Args:
        message: what is wrong, where, and the value found.
        remedy: what to change, naming the key, file or command.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)

    @property
    def message(self) -> str:
        """What is wrong, where, and the value found."""
        return str(self.args[0])

    @property
    def remedy(self) -> str:
        """What to change; empty when the message says it all."""
        return str(self.args[1])

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".rstrip()


class SettingsError(PipelineError):
    """The campaign file or an option is wrong."""


class MissingFileError(SettingsError):
    """A file (or package) that the campaign file names is not there."""


class StructureError(PipelineError):
    """A structure cannot be used."""


class SiteError(PipelineError):
    """The machine is not set up as the site configuration says."""


class StoreError(PipelineError):
    """The campaign directory cannot be used."""


class DiskFullError(StoreError):
    """A disk takes no more: full, quota spent, or read-only."""


class ModelError(PipelineError):
    """A model file is missing, damaged or of another version."""


class TaskError(PipelineError):
    """A task was asked for something it cannot do."""


class LostWorkerError(PipelineError):
    """The process or node that carried out a task died, each time it was tried."""


class PostponedError(PipelineError):
    """The job that carries out a task ends before the task can; what was done is kept, and another job goes on with it."""


class NotBegunError(PostponedError):
    """The job ends so soon that nothing was begun."""
