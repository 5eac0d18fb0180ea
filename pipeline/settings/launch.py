"""``site.launch:`` — how a machine starts the program behind a reference. Holds no physics."""

import shlex
from pathlib import PurePath
from typing import Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pipeline.settings.allocation import Walltime
from pipeline.settings.model import Settings

LONGEST_S = 7200
"""Wall time of one try where nothing is said, seconds."""


class ProgramSettings(Settings):
    """Programs by name or path, as the workers find them."""

    cp2k: str = Field("cp2k.psmp", min_length=1, description="CP2K")
    pw: str = Field("pw.x", min_length=1, description="pw.x of Quantum ESPRESSO")


class LaunchSettings(Settings):
    """How an external reference (CP2K, Quantum ESPRESSO) is started. No shell reads these texts."""

    programs: ProgramSettings = Field(default_factory=ProgramSettings, description="programs by name or path")
    mpi: str = Field(
        "mpirun -n {ranks} --bind-to none --oversubscribe",
        description="command that starts several ranks, e.g. srun -n {ranks} -N {nodes} -c {threads} --exact --mem=0; "
        "{ranks}, {nodes}, {threads} "
        "and {memory_MB} (per rank) are filled in; one rank on one node starts without it",
    )
    ranks: PositiveInt | None = Field(
        None, description="MPI ranks of one label [default: as many as the threads of a label task leave room for]"
    )
    nodes: PositiveInt = Field(1, description="nodes of one label")
    threads: PositiveInt = Field(1, description="OpenMP threads of one rank")
    memory_GB: PositiveFloat | None = Field(
        None, description="address space one rank may take at most, GB [default: no cap]"
    )
    time_limit: Walltime | None = Field(
        None,
        description="wall time of one try of a label: HH:MM:SS or seconds; a longer one is tried where it ran out "
        "[default: 2 h; in SLURM jobs what label.drain leaves]",
    )
    environment: dict[str, str] = Field(default_factory=dict, description="variables of the program, NAME: value")
    container: str = Field(
        "", description="command before the program on every rank, e.g. apptainer exec --bind /scratch cp2k.sif"
    )

    @property
    def limit_s(self) -> int:
        """Wall time of one try, seconds."""
        return self.time_limit if self.time_limit is not None else LONGEST_S

    def ranks_for(self, cores: int) -> int:
        """MPI ranks of one label.

        Args:
            cores: that a label has on each of its nodes.
        """
        return self.ranks or self.nodes * max(1, cores // self.threads)

    @property
    def is_srun(self) -> bool:
        """Whether SLURM itself places the ranks."""
        return PurePath(self.mpi.split()[0]).name == "srun" if self.mpi.strip() else False

    @model_validator(mode="after")
    def _known_fields(self) -> Self:
        known = {"ranks": "1", "nodes": "1", "threads": "1", "memory_MB": "1"}
        try:
            self.mpi.format(**known)
        except (KeyError, IndexError, ValueError, AttributeError):
            raise ValueError(
                f"mpi: {self.mpi!r} may hold only {', '.join(f'{{{name}}}' for name in known)}; "
                "write other braces twice"
            ) from None
        for key, command in (("mpi", self.mpi), ("container", self.container)):
            try:
                shlex.split(command)
            except ValueError as error:
                raise ValueError(f"{key}: {command!r} cannot be taken apart: {error}; close every quote") from None
        if "{ranks}" not in self.mpi:
            raise ValueError(f"mpi: {self.mpi!r} does not say how many ranks; write {{ranks}} where their number goes")
        if self.ranks is not None and self.ranks < self.nodes:
            raise ValueError(f"ranks ({self.ranks}) is below nodes ({self.nodes}): each node needs at least one")
        return self
