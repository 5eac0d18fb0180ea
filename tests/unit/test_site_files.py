"""Site files: by name, by path, with keys over them; what is said of wrong ones; the ready ones."""

import re
import subprocess
from importlib.resources import files
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from apps.cli.schema import campaign_schema, site_schema
from pipeline.errors import SettingsError
from pipeline.intake import open_campaign
from pipeline.settings.allocation import Allocation
from pipeline.settings.loading import dump_settings, problems_error, read_draft
from pipeline.settings.site import LocalHTEXSite, Site, SlurmSite
from pipeline.settings.site_files import anchored, ready_sites
from pipeline.settings.yaml_source import parse_yaml
from site_configs import local_htex, slurm
from site_configs.slurm_script import JobKind, script

LIBRARY = files("site_configs")
READY = ready_sites(LIBRARY)
MINIMAL = """\
name: copper
seed: 1
systems: [{name: cu, structures: [cu.extxyz]}]
labels: {reference: {kind: emt}, budget: 64}
"""
CLUSTER = """\
kind: slurm
account: ours
walk:
  partition: gpu
  walltime: "12:00:00"
  cores_per_node: 8
  gpus_per_node: 2
  scheduler_options: [--exclude=node7]
label:
  walltime: 1-00:00:00
  cores_per_node: 4
"""
WALK = "site:\n" + indent(CLUSTER, "  ")


def site_of(directory: Path, section: str, *overrides: str, site: str | None = None) -> Any:
    path = directory / "campaign.yaml"
    path.write_text(MINIMAL + section)
    draft = read_draft(path, overrides, site=site, library=LIBRARY)
    if draft.settings is None:
        raise problems_error(path, draft.problems)
    return draft.settings.site


def problems_of(directory: Path, section: str, *overrides: str, site: str | None = None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        site_of(directory, section, *overrides, site=site)
    return [line.strip() for line in caught.value.message.splitlines()[1:]]


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text(CLUSTER)
    return path


def test_a_site_is_a_mapping_a_name_or_a_path(tmp_path: Path, cluster: Path) -> None:
    assert isinstance(site_of(tmp_path, "site: {kind: local_htex}\n"), LocalHTEXSite)
    assert site_of(tmp_path, "site: lumi\n").walk.partition == "standard-g"
    relative, absolute = site_of(tmp_path, "site: ./cluster.yaml\n"), site_of(tmp_path, f"site: {cluster}\n")
    assert relative == absolute
    assert (relative.account, relative.walk.walltime, relative.label.walltime) == ("ours", 12 * 3600, 24 * 3600)


def test_keys_beside_a_file_change_its_own_and_leave_the_rest(tmp_path: Path, cluster: Path) -> None:
    plain = site_of(tmp_path, "site: cluster.yaml\n")
    section = (
        "site: {file: cluster.yaml, account: theirs, walk: {max_blocks: 4, scheduler_options: [], partition: null}}\n"
    )
    changed = site_of(tmp_path, section)
    assert (changed.account, changed.walk.max_blocks, changed.walk.partition) == ("theirs", 4, None)
    assert changed.walk.scheduler_options == ()
    assert changed.label == plain.label
    assert changed.walk.walltime == plain.walk.walltime


def test_a_site_file_may_change_another_one_but_not_itself(tmp_path: Path, cluster: Path) -> None:
    (tmp_path / "mine.yaml").write_text("file: cluster.yaml\naccount: mine\nwalk: {max_blocks: 3}\n")
    mine = site_of(tmp_path, "site: {file: mine.yaml, walk: {cores_per_worker: 4}}\n")
    assert (mine.account, mine.walk.max_blocks, mine.walk.cores_per_worker) == ("mine", 3, 4)
    cluster.write_text("file: mine.yaml\n")
    assert "names itself as its site file" in problems_of(tmp_path, "site: mine.yaml\n")[0]


def test_site_of_the_command_line_replaces_the_section_and_set_wins_over_all(
    tmp_path: Path, cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    cluster.rename(elsewhere / "cluster.yaml")
    monkeypatch.chdir(elsewhere)
    section = "site: {kind: local_htex, walk_slots: 7}\n"
    site = site_of(tmp_path, section, "site.account=mine", "site.walk.max_blocks=4", site="cluster.yaml")
    assert (site.kind, site.account, site.walk.max_blocks) == ("slurm", "mine", 4)
    assert anchored("cluster.yaml") == str(elsewhere / "cluster.yaml")
    assert anchored("lumi") == "lumi"


def test_the_record_of_a_campaign_has_the_whole_site(tmp_path: Path, cluster: Path) -> None:
    path = tmp_path / "campaign.yaml"
    path.write_text(MINIMAL + "site: cluster.yaml\n")
    settings = read_draft(path).settings
    assert settings is not None
    again = tmp_path / "again.yaml"
    again.write_text(dump_settings(settings))
    cluster.unlink()
    assert read_draft(again).settings == settings


def test_problems_of_a_site_file_are_told_with_its_own_lines_and_those_over_it_with_theirs(
    tmp_path: Path, cluster: Path
) -> None:
    cluster.write_text(
        CLUSTER.replace("cores_per_node: 8", "cores_per_nod: 8").replace("account: ours", "acount: ours")
    )
    section = "site:\n  file: cluster.yaml\n  label: {max_blocks: 0}\n"
    found = problems_of(tmp_path, section, "site.walk.min_blocks=-1")
    assert f"{cluster}, line 2: site.acount: unknown key; found 'ours'; did you mean account" in "\n".join(found)
    assert f"{cluster}, line 3: site.walk.cores_per_node: missing" in "\n".join(found)
    assert f"{cluster}, line 6: site.walk.cores_per_nod: unknown key" in "\n".join(found)
    assert "line 7: site.label.max_blocks: must be greater than 0; found 0" in "\n".join(found)
    assert any(line.startswith("--set site.walk.min_blocks=-1: site.walk.min_blocks: must be") for line in found)
    assert len(found) == 5


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("site: perlmuter\n", "there is no ready site 'perlmuter'; ready ones are frontier, leonardo,"),
        ("site: perlmuter\n", "(did you mean perlmutter?)"),
        ("site: mycluster\n", "a file of your own is given as a path: ./mycluster.yaml"),
        (
            "site: ./nowhere.yaml\n",
            "nowhere.yaml: No such file or directory; give the name of a ready site or the path",
        ),
        ("site: {file: 3}\n", "site: must be the name or path of a site file; found 3"),
        ("site: ./bad.yaml\n", "bad.yaml: not YAML: line 2"),
        ("site: ./list.yaml\n", "must be the keys of a site section (kind: slurm, ...); found [1]"),
        ("site: ./whole.yaml\n", "write its keys without the site: above them"),
    ],
)
def test_a_site_file_that_cannot_be_used_is_one_line_with_a_remedy(tmp_path: Path, section: str, expected: str) -> None:
    (tmp_path / "bad.yaml").write_text("kind: [slurm\n")
    (tmp_path / "list.yaml").write_text("[1]\n")
    (tmp_path / "whole.yaml").write_text("site: {kind: inline}\n")
    found = problems_of(tmp_path, section)
    assert len(found) == 1
    assert found[0].startswith("line 5: site: ")
    assert expected in found[0]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('    walltime: "12:00:00"\n', "", "site.walk.walltime: missing; give wall time of one job: HH:MM:SS"),
        ("partition: gpu", "partitoin: gpu", "site.walk.partitoin: unknown key; found 'gpu'; did you mean partition"),
        (
            "account: ours",
            "partition: gpu",
            "site.partition: unknown key; found 'gpu'; it belongs at site.walk.partition or",
        ),
        ("account: ours", "walltime: 3600", "it belongs at site.walk.walltime or site.label.walltime"),
        ("account: ours", "walk_slots: 2", "only kind: inline or local_threads or local_htex has it"),
        (
            "account: ours",
            "walk_slots: 2",
            "and this is kind: slurm, which knows walk_task_s, launch, train_ranks, kind, account",
        ),
        ("account: ours", "account: 1234", "site.account: not text; found 1234; put it in quotes"),
        ('"12:00:00"', "12 hours", "'12 hours' is not a wall time; write HH:MM:SS"),
        ('"12:00:00"', "1:30", "'1:30' is not a wall time"),
        ('"12:00:00"', "12:75:00", "'12:75:00' is not a wall time"),
        ('"12:00:00"', "30", "must be greater than or equal to 60; found 30; wall time of one job"),
        ('"12:00:00"', "1.5", "not a whole number; found 1.5"),
        ("partition: gpu", "drain: 13:00:00", "site.walk: drain (46800 s) must be below walltime (43200 s)"),
        ("    cores_per_node: 8\n", "", "site.walk.cores_per_node: missing; give CPU cores per node"),
        ("cores_per_node: 8", "cores_per_node: 1", "cores_per_node is 1, but 2 workers of 1 cores do not fit"),
        ("[--exclude=node7]", "--exclude=node7", "must be a list; found '--exclude=node7'; write ['--exclude=node7']"),
        ("[--exclude=node7]", "['#SBATCH -C a']", "'#SBATCH -C a' is not an option of sbatch"),
        (
            "--exclude=node7",
            "--clusters=b",
            "scheduler_options: --clusters cannot be given here: squeue and scancel would",
        ),
        ("--exclude=node7", "-t 30", "-t cannot be given here: use walltime"),
        ("gpus_per_node: 2", "launcher: mpirun", "use 'single' or 'srun'"),
        ("kind: slurm", "kind: slrum", "unknown kind 'slrum'"),
        (
            "kind: slurm\n",
            "walk_task_s: 60\n",
            "site: kind is missing; add kind: one of inline, local_threads, local_htex, slurm",
        ),
    ],
)
def test_a_mistake_in_a_slurm_section_is_named_with_its_key_and_remedy(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    assert old in WALK
    assert expected in "\n".join(problems_of(tmp_path, WALK.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("12:00:00", 43200),
        ("'12:00:00'", 43200),
        ("25:00:00", 90000),
        ("1-00:00:00", 86400),
        ("90", 90),
        ("01:30:00", 5400),
    ],
)
def test_wall_times_mean_the_same_quoted_or_not(tmp_path: Path, written: str, seconds: int) -> None:
    assert site_of(tmp_path, WALK.replace('"12:00:00"', written)).walk.walltime == seconds


def test_the_rest_of_a_campaign_is_looked_at_although_its_site_file_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "campaign.yaml"
    path.write_text(MINIMAL + "site: nowhere.yaml\nwalkers: {cuont: 8}\n")
    with pytest.raises(SettingsError) as caught:
        open_campaign(path)
    for expected in ("3 problems", "nowhere.yaml", "walkers.cuont", "cu.extxyz"):
        assert expected in caught.value.message


@pytest.mark.parametrize("name", READY)
def test_a_ready_site_loads_and_says_where_every_value_is_from(name: str) -> None:
    text = (LIBRARY / f"{name}.yaml").read_text()
    source = parse_yaml(text, where=name)
    site: Any = TypeAdapter(Site).validate_python(source.data)
    rows = text.splitlines()
    listed = set(re.findall(r"^# (\[\d\]) (?:https?://|the same|CINECA|NERSC)", text, re.MULTILINE))
    for path, line in source.lines.items():
        value = source.data
        for part in path:
            value = value[part]
        if isinstance(value, dict) or isinstance(path[-1], int) or path == ("kind",):
            continue
        origin = re.search(r"  # (?:choice|(?:\[\d\] ?)+)", rows[line - 1])
        assert origin, f"{name}.yaml line {line}: {rows[line - 1]}"
        assert set(re.findall(r"\[\d\]", rows[line - 1])) <= listed, rows[line - 1]
    if isinstance(site, SlurmSite):
        assert "never run" in text
        assert site.account is None, "whose account pays is for the user to say"
        assert site.walk.cores_per_worker * site.walk.workers_per_node <= site.walk.cores_per_node


@pytest.mark.parametrize("name", READY)
def test_a_ready_site_makes_a_configuration(name: str, tmp_path: Path) -> None:
    site: Any = TypeAdapter(Site).validate_python(yaml.safe_load((LIBRARY / f"{name}.yaml").read_text()))
    if isinstance(site, LocalHTEXSite):
        config = local_htex.make_config(tmp_path, site, retry_handler=lambda *_: 1.0, exports={})
        assert {executor.label for executor in config.executors} == {"walk", "label", "select", "train"}
        return
    site = site.model_copy(update={"interface": "lo"})  # of those named in the files this machine has none
    config = slurm.make_config(
        tmp_path,
        site,
        job_names={label: f"fw-test-{label}" for label in site.allocations},
        retry_handler=lambda *_: 1.0,
        notify=lambda *_: None,
        exports={},
    )
    assert {executor.label for executor in config.executors} == set(site.allocations)
    for label, allocation in site.allocations.items():
        text = script(JobKind(label, f"fw-test-{label}", site, allocation, {}), "true", tmp_path / "out")
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        assert f"#SBATCH --cpus-per-task={allocation.cores_per_node}\n" in text


def test_the_schemas_take_all_forms_of_a_site_and_refuse_others() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    campaign = {**yaml.safe_load(MINIMAL)}
    for site in ("lumi", {"file": "lumi", "account": "a"}, {"kind": "local_htex"}, yaml.safe_load(CLUSTER)):
        if isinstance(site, dict) and "walk" in site:
            site["walk"]["walltime"] = 43200
            site["label"]["walltime"] = 86400
        jsonschema.validate({**campaign, "site": site}, campaign_schema())
    for wrong in (3, {"kind": "slurm"}, {"walk_slots": "two"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**campaign, "site": wrong}, campaign_schema())
    jsonschema.validate(yaml.safe_load((LIBRARY / "workstation.yaml").read_text()), site_schema())


def test_the_site_file_of_the_readme_is_right_and_its_table_knows_every_key() -> None:
    text = Path(__file__).parents[2].joinpath("README.md").read_text()
    example = next(block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "kind: slurm" in block)
    site: Any = TypeAdapter(Site).validate_python(parse_yaml(example, where="README").data)
    assert site.label.workers_per_node == 4
    assert len(example.splitlines()) <= 31
    described = set(re.findall(r"`(\w+)`", text))
    keys = {*SlurmSite.model_fields, *Allocation.model_fields} - {"kind"}
    assert keys <= described


@pytest.mark.parametrize("name", READY)
def test_every_ready_site_can_hold_labels_that_programs_make(tmp_path: Path, name: str) -> None:
    path = tmp_path / "campaign.yaml"
    path.write_text(MINIMAL.replace("{kind: emt}", "{kind: cp2k, preset: pbe}") + f"site: {{file: {name}}}\n")
    draft = read_draft(path, library=LIBRARY)
    assert draft.problems == ()
    assert draft.settings is not None
    launch = draft.settings.site.launch
    assert launch.is_srun is isinstance(draft.settings.site, SlurmSite)
    assert "{ranks}" in launch.mpi
