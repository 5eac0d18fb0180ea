"""Labels and campaigns with CP2K and Quantum ESPRESSO over SLURM: ranks where they belong, every label once, nothing left."""

import os
import shutil
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write
from cluster import Cluster, wait_until
from driving import Campaign
from test_kill import processes_with

from apps.steps import open_steps
from pipeline.frames import Frame
from pipeline.records import LabelResult, LabelTask, Status
from pipeline.settings.dft import QuantumEspressoReference
from pipeline.settings.site import SlurmSite

PROGRAMS = {"cp2k": "cp2k.psmp", "pw": "pw.x"}
PSEUDO = Path("/usr/share/espresso/pseudo")
COUNTED = """#!/bin/sh
# {program}, and a line for every calculation that begins or ends, from its first rank
case "$*" in *version*) exec {program} "$@";; esac
rank=${{OMPI_COMM_WORLD_RANK:-${{PMIX_RANK:-0}}}}
atoms=$(cat *.in* 2>/dev/null | grep -E '^ *[A-Z][a-z]? +[-+0-9.E]+ +[-+0-9.E]+ +[-+0-9.E]+' | sha256sum | cut -c1-16)
echo "node $atoms $SLURMD_NODENAME $rank $$" >> {log}
[ "$rank" = 0 ] && echo "began $atoms $SLURMD_NODENAME - $$" >> {log}
{program} "$@"
code=$?
[ "$rank" = 0 ] && [ $code = 0 ] && echo "ended $atoms $SLURMD_NODENAME - $$" >> {log}
exit $code
"""
ROOT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    # more ranks than cores: those that wait must not keep the others from working
    "OMPI_MCA_mpi_yield_when_idle": "1",
}
MPIRUN = "mpirun -n {ranks} --bind-to none --oversubscribe"
SRUN = "srun --mpi=pmix -n {ranks} -N {nodes} -c {threads} --exact --mem=0"

SILICON = {
    "kind": "quantum_espresso",
    "pseudopotentials": str(PSEUDO),
    "pseudopotential_of": {"Si": "Si.pbe-rrkj.UPF"},
    "cutoff_Ry": 14,
    "density_cutoff_Ry": 80,
    "kpoints": {"mesh": [2, 2, 2], "shifted": True},
}
HYDROGEN = {"kind": "cp2k", "preset": "pbe", "cutoff_Ry": 280, "rel_cutoff_Ry": 40, "scf_convergence": 1e-6}
SMALL: dict[str, Any] = {
    "seed": 2,
    "potential": {"hidden": [16, 16], "channels": 2, "gaussians": 4, "cutoff_A": 3.5},
    "walkers": {
        "count": 4,
        "batch": 4,
        "segment_steps": 40,
        "store_every": 5,
        "timestep_fs": 0.5,
        "stop": {"isolation_A": 3.5},
    },
    "selection": {"batch": 4},
    "training": {"epochs": 6, "warm_epochs": 4},
}
BUDGET = 10


@pytest.fixture(scope="session", autouse=True)
def programs() -> None:
    """They are installed; else tests are skipped, or fail where CI is set."""
    if missing := [name for name in (*PROGRAMS.values(), "mpirun") if shutil.which(name) is None]:
        text = f"{', '.join(missing)} not found: install cp2k, quantum-espresso, quantum-espresso-data, openmpi-bin"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)


def counted(directory: Path, log: Path) -> dict[str, str]:
    """The programs, as scripts that keep account of what they compute."""
    paths = {}
    for key, program in PROGRAMS.items():
        path = directory / f"counted-{program}"
        path.write_text(COUNTED.format(program=shutil.which(program), log=log))
        path.chmod(0o755)
        paths[key] = str(path)
    return paths


def launching(site: dict[str, Any], directory: Path, log: Path, **launch: Any) -> dict[str, Any]:
    """The site with programs that are counted."""
    common = {"programs": counted(directory, log), "environment": ROOT, "time_limit": 120}
    return {**site, "launch": {**common, **launch}}


def ranks_by_label(log: Path) -> dict[str, list[tuple[str, int]]]:
    """Node and rank of every process of each calculation."""
    found: dict[str, list[tuple[str, int]]] = {}
    for line in log.read_text().splitlines():
        word, atoms, node, rank, _ = line.split()
        if word == "node":
            found.setdefault(atoms, []).append((node, int(rank)))
    return {atoms: sorted(places) for atoms, places in found.items()}


LAUNCHES = [
    # label jobs; launch; nodes of one label; the campaigns below have others
    pytest.param(
        {"nodes_per_block": 2, "cores_per_worker": 2}, {"ranks": 2, "mpi": MPIRUN}, 1, id="mpirun-on-each-node"
    ),
    pytest.param({"nodes_per_block": 2}, {"ranks": 2, "nodes": 2, "mpi": MPIRUN}, 2, id="mpirun-over-two-nodes"),
    # both would fit on the first node
    pytest.param(
        {"nodes_per_block": 2, "cores_per_worker": 4, "cores_per_node": 4},
        {"ranks": 2, "mpi": SRUN.replace(" -N {nodes}", "")},
        1,
        id="srun-on-each-node",
    ),
    pytest.param({"cores_per_worker": 2, "cores_per_node": 4}, {"ranks": 2, "mpi": SRUN}, 1, id="srun-side-by-side"),
]


@pytest.mark.parametrize(("job", "launch", "nodes"), LAUNCHES)
def test_the_ranks_of_a_label_are_on_its_own_nodes(
    cluster: Cluster, site: dict[str, Any], tmp_path: Path, job: dict[str, Any], launch: dict[str, Any], nodes: int
) -> None:
    directory = cluster.shared / tmp_path.name
    directory.mkdir()
    log = directory / "calculations"
    # jobs with cores that fill a node, so that each pool is alone on it
    site["label"] = {**site["label"], "cores_per_node": 2, "cores_per_worker": 1, **job}
    settings = SlurmSite.model_validate(launching(site, directory, log, **launch))
    atoms = bulk("Si", a=5.43)
    prefix = f"farwalk-{tmp_path.name}"
    with open_steps(settings, directory / "runinfo", prefix=prefix) as steps:
        futures: list[Future[LabelResult]] = []
        for number in range(settings.label_slots):
            atoms.positions[1, 0] += 0.05
            task = LabelTask(
                task=f"label-{number}",
                round=0,
                item=number,
                frame=Frame.from_atoms(atoms, system="silicon"),
                reference=QuantumEspressoReference.model_validate(SILICON),
                scratch=str(directory / f"label-{number}"),
                threads=settings.label_threads,
                launch=settings.launch,
            )
            futures.append(steps.submit(task))
        results = [future.result(timeout=240) for future in futures]
    cluster.wait_until_empty(prefix)
    assert [result.status for result in results] == [Status.DONE] * len(results), [result.reason for result in results]
    ranks = ranks_by_label(log)
    assert len(ranks) == len(results)
    for places in ranks.values():
        assert len(places) == settings.launch.ranks
        assert len({node for node, _ in places}) == nodes, places
    if nodes == 1:
        # each ran on its own node's disk, which the others do not see
        assert Counter(places[0][0] for places in ranks.values()) == Counter(
            result.timing.host.split(":")[0] for result in results
        )
    assert not processes_with(str(directory))


@pytest.fixture
def campaign(cluster: Cluster, request: pytest.FixtureRequest):
    """Makes campaigns; their drivers end with the test."""
    made: list[Campaign] = []

    def make(atoms: Atoms, reference: dict[str, Any], site: dict[str, Any], **launch: Any) -> Campaign:
        directory = cluster.shared / request.node.name[:30]
        directory.mkdir()
        write(directory / "start.extxyz", atoms, format="extxyz")
        one = Campaign(directory, directory / "c")
        labels = {"reference": reference, "budget": BUDGET, "initial": 6, "initial_rattle_A": 0.03}
        systems = [{"name": "one", "structures": ["start.extxyz"]}]
        one.write(
            {**SMALL, "name": "dft", "systems": systems, "labels": labels},
            launching(site, directory, one.log, **launch),
        )
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()


def assert_nothing_is_left(cluster: Cluster, campaign: Campaign) -> None:
    cluster.wait_until_empty(campaign.prefix)
    wait_until(lambda: not processes_with(str(campaign.directory)), "all processes gone", 30)


def test_silicon_is_labelled_by_quantum_espresso_over_two_nodes_each_label_once(
    cluster: Cluster, site: dict[str, Any], campaign
) -> None:
    site["label"].update(nodes_per_block=2, cores_per_node=1, drain="00:04:00")
    silicon = campaign(bulk("Si", a=5.43), SILICON, site, ranks=2, nodes=2, mpi=SRUN)
    silicon.run(300)
    silicon.assert_complete()
    labelled = silicon.events("labelled")
    assert len(silicon.events("trained")) >= 2, "labels of walkers too"
    assert all(len({node for node, _ in places}) == 2 for places in ranks_by_label(silicon.log).values())
    assert all(event["core_s"] > 0 and not event["tries"] for event in labelled)
    assert len({event["reference"] for event in labelled}) == 1, "one level of theory"
    assert_nothing_is_left(cluster, silicon)


def test_a_driver_killed_among_cp2k_s_labels_goes_on_and_makes_no_finished_one_again(
    cluster: Cluster, site: dict[str, Any], campaign
) -> None:
    site["label"].update(nodes_per_block=2, cores_per_node=1, drain="00:04:00")  # a worker on each of two nodes
    molecule = Atoms("HH", positions=[[2.5, 2.5, 2.1], [2.5, 2.5, 2.86]], cell=[5.0, 5.0, 5.0], pbc=True)
    hydrogen = campaign(molecule, HYDROGEN, site, ranks=1)
    hydrogen.start()
    hydrogen.wait_for("labelled", 2, timeout_s=180)
    wait_until(hydrogen.at_work, "a calculation under way", 60)
    recorded = len(hydrogen.events("labelled"))
    under_way = set(hydrogen.at_work())
    hydrogen.kill()
    hydrogen.run(300)
    assert sorted(event["number"] for event in hydrogen.events("labelled")) == list(range(BUDGET))
    assert hydrogen.events("stopped")[-1]["reason"] == "budget", hydrogen.story()
    ended: Counter[str] = hydrogen.calculations("ended")
    assert len(ended) == BUDGET
    again = {atoms for atoms, count in ended.items() if count > 1}
    assert again <= under_way, "only what was under way when the driver died may have been computed a second time"
    assert recorded < BUDGET
    assert len(hydrogen.events("trained")) >= 2, "labels of walkers too"
    assert_nothing_is_left(cluster, hydrogen)
