"""Settings: what loads, what is refused and how it is said, what may change on resume."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SettingsError
from pipeline.settings import CampaignSettings
from pipeline.settings.changes import changed_keys, is_resumable, refused_changes, science_digest
from pipeline.settings.dft import CP2KReference, DFTReference, QuantumEspressoReference
from pipeline.settings.keys import every_key
from pipeline.settings.loading import dump_settings, load_campaign
from pipeline.settings.site import SlurmSite
from pipeline.settings.yaml_source import parse_yaml, show_path

MINIMAL: dict[str, Any] = {
    "name": "copper",
    "seed": 1,
    "systems": [{"name": "cu", "structures": ["cu.extxyz"]}],
    "labels": {"reference": {"kind": "emt"}, "budget": 64},
}


def write(directory: Path, data: object) -> Path:
    path = directory / "campaign.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return path


def problems_of(directory: Path, data: object, *overrides: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load_campaign(write(directory, data), overrides)
    return caught.value.message


def test_a_minimal_campaign_loads_with_defaults_and_its_directory(tmp_path: Path) -> None:
    loaded = load_campaign(write(tmp_path, MINIMAL))
    assert loaded.base == tmp_path
    assert loaded.settings.walkers.bias.tau == 0.25
    assert loaded.settings.site.kind == "local_htex"


def test_dumped_settings_load_to_equal_settings(tmp_path: Path) -> None:
    settings = load_campaign(write(tmp_path, MINIMAL)).settings
    assert load_campaign(write(tmp_path, dump_settings(settings))).settings == settings


def test_every_key_and_every_kind_has_a_description() -> None:
    document = CampaignSettings.model_json_schema()
    models = {"CampaignSettings": document, **document["$defs"]}
    silent = [
        f"{m}.{k}" for m, d in models.items() for k, v in d.get("properties", {}).items() if not v.get("description")
    ]
    assert silent == []


def test_every_number_with_a_unit_names_it_in_its_description() -> None:
    units = {"_fs": "fs", "_K": "K", "_A": "Å", "_eV_per_A": "eV/Å", "_per_ps": "1/ps", "_h": "hours", "_s": "seconds"}
    for key, field in every_key().items():
        suffix = next((s for s in sorted(units, key=len, reverse=True) if key.endswith(s)), None)
        if suffix and field.annotation in (float, float | None):
            assert units[suffix] in str(field.description), key


def test_all_problems_are_said_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = (
        "name: copper\nseed: one\nsystems:\n  - {name: cu, structures: [cu.extxyz]}\n"
        "labels: {reference: {kind: emtt}, budget: 64}\nwalkers:\n  timestep_fs: 0.5 fs\n  cont: 8\n"
    )
    lines = problems_of(tmp_path, text).splitlines()
    assert "4 problems" in lines[0]
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["line 2", "line 5", "line 7", "line 8"]


@pytest.mark.parametrize(
    ("section", "value", "expected"),
    [
        ("walkers", {"timestep_fs": "0.5 fs"}, "write the bare number 0.5 in the unit of the key (MD time step, fs)"),
        ("walkers", {"timestep_ps": 0.5}, "did you mean timestep_fs (MD time step, fs)?"),
        ("walkers", {"temperature_K": 300}, "did you mean temperatures_K"),
        ("walkers", {"tau": 0.1}, "it belongs at walkers.bias.tau"),
        ("walkers", {"count": True}, "walkers.count: not a number; found true"),
        ("walkers", 3, "walkers: must be a section of keys; found 3"),
        ("walkers", {"bias": {"tau": -1}}, "walkers.bias.tau: must be greater than or equal to 0; found -1"),
        ("walkers", {"count": 10, "batch": 4}, "walkers.count (10) is not a multiple of walkers.batch (4)"),
        ("walkers", {"bias": {"species_weights": {"Xx": 0}}}, "species_weights: unknown element 'Xx'"),
        ("selection", {"kind": "maxdt"}, "did you mean maxdet?"),
        (
            "uncertainty",
            {"sigma": 0.1},
            "uncertainty: kind is missing; add kind: one of posterior, distance, committee",
        ),
        ("uncertainty", {"kind": "committee"}, "set potential.members to 2 or more"),
        ("site", {"kind": "slurmm"}, "unknown kind 'slurmm'"),
        ("potential", {"hidden": []}, "potential.hidden: must have at least 1 item"),
        ("systems", [], "systems: must have at least 1 item"),
        ("schedule", "steaming", "one of rounds, streaming (did you mean streaming?)"),
    ],
)
def test_a_mistake_is_named_with_its_key_and_remedy(tmp_path: Path, section: str, value: object, expected: str) -> None:
    assert expected in problems_of(tmp_path, {**MINIMAL, section: value})


def test_no_message_shows_the_inner_words_of_the_validator(tmp_path: Path) -> None:
    data = {
        **MINIMAL,
        "labels": {"reference": {"kind": "openmm", "topolgy": "x.pdb"}, "budget": "64 labels"},
        "site": 1,
    }
    text = problems_of(tmp_path, data)
    for noise in ("pydantic", "Input should", "type=", "Value error", "tagged-union", "openmm.topolgy"):
        assert noise not in text
    assert "labels.reference.topolgy: unknown key" in text


def test_overrides_win_over_the_file_and_make_missing_sections(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    overrides = [
        "walkers.bias.tau=0",
        "systems[0].name=al",
        "systems.0.index=-1",
        "site={kind: inline}",
        "stop.max_wall_h=1e-1",
    ]
    settings = load_campaign(path, overrides).settings
    assert settings.walkers.bias.tau == 0
    assert (settings.systems[0].name, settings.systems[0].index) == ("al", "-1")
    assert settings.site.kind == "inline"
    assert settings.stop.max_wall_h == 0.1


def test_overrides_reach_into_free_mappings(tmp_path: Path) -> None:
    settings = load_campaign(write(tmp_path, MINIMAL), ["walkers.bias.species_weights.H=0"]).settings
    assert settings.walkers.bias.species_weights == {"H": 0.0}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("walkers.bais.tau=0", "Did you mean walkers.bias.tau?"),
        ("walkers.bias.tau", "not KEY=VALUE"),
        ("=1", "not KEY=VALUE"),
        ("systems[4].name=x", "the list has 1 entries"),
        ("walkers.bias.tau=[1", "not YAML"),
        ("walkers.bias.tau=-1", "must be greater than or equal to 0; found -1"),
        ("name.first=x", "unknown key name.first"),
    ],
)
def test_a_wrong_override_is_named(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in problems_of(tmp_path, MINIMAL, override)


def test_numbers_in_scientific_notation_are_numbers() -> None:
    assert parse_yaml("[1e-3, -2E5, 1.5e+2, .5e1]", where="here").data == [1e-3, -2e5, 150.0, 5.0]


def test_duplicate_keys_are_all_named_with_both_lines() -> None:
    with pytest.raises(SettingsError) as caught:
        parse_yaml("a: 1\nb:\n  c: 1\n  c: 2\na: 2\n", where="here")
    assert "b.c: lines 3 and 4" in caught.value.message
    assert "a: lines 1 and 5" in caught.value.message


def test_an_alias_that_contains_itself_ends() -> None:
    assert parse_yaml("&a [*a]", where="here").lines == {(0,): 1}


@given(
    st.recursive(
        st.integers() | st.booleans(), lambda inner: st.dictionaries(st.text("abc", min_size=1), inner), max_leaves=8
    )
)
def test_parsing_gives_what_was_dumped_and_a_line_for_every_key(data: object) -> None:
    source = parse_yaml(yaml.safe_dump(data, default_flow_style=False), where="here")
    assert source.data == data
    assert all(line >= 1 for line in source.lines.values())
    if isinstance(data, dict):
        assert {path[0] for path in source.lines} == set(data)


def test_key_paths_are_shown_as_they_are_written() -> None:
    assert show_path(("systems", 0, "variables", 1, "atoms")) == "systems[0].variables[1].atoms"


def test_only_budget_stop_rules_and_site_may_change_on_resume(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    old = load_campaign(path).settings
    more = load_campaign(path, ["labels.budget=100", "stop.max_wall_h=3", "site={kind: inline}"]).settings
    assert set(changed_keys(old, more)) >= {"labels.budget", "stop.max_wall_h", "site.kind"}
    assert refused_changes(old, more) == []
    assert science_digest(old) == science_digest(more)
    other = load_campaign(path, ["walkers.bias.tau=0", "labels.budget=100"]).settings
    assert refused_changes(old, other) == ["walkers.bias.tau: was 0.25, is 0.0"]
    assert science_digest(old) != science_digest(other)


def test_a_key_that_only_begins_like_a_resumable_one_is_not() -> None:
    assert is_resumable("stop.max_rounds")
    assert not is_resumable("stopping")
    assert not is_resumable("labels.initial")


def test_moving_the_files_of_a_reference_is_no_change(tmp_path: Path) -> None:
    openmm = {"kind": "openmm", "topology": "/here/mol.pdb", "force_field": ["amber19/protein.ff19SB.xml"]}
    settings = load_campaign(write(tmp_path, {**MINIMAL, "labels": {"reference": openmm, "budget": 64}})).settings
    moved = load_campaign(tmp_path / "campaign.yaml", ["labels.reference.topology=/there/mol.pdb"]).settings
    other = load_campaign(tmp_path / "campaign.yaml", ["labels.reference.topology=/here/other.pdb"]).settings
    assert science_digest(settings) == science_digest(moved)
    assert refused_changes(settings, other) == ["labels.reference.topology: was 'mol.pdb', is 'other.pdb'"]


VARIABLES = [
    {"kind": "dihedral", "name": "phi", "atoms": [4, 6, 8, 14]},
    {"kind": "distance", "name": "d", "atoms": [0, 1], "range_A": [1, 3]},
    {"kind": "volume", "name": "V", "range_A3": [900, 1500]},
]
OTHER_KIND = [{"kind": "distance", "name": "phi", "atoms": [0, 1], "range_A": [1, 3]}]
BAROSTAT = "walkers.barostat={kind: isotropic}"
HILLS = "walkers.metadynamics={variables: [phi], widths: [20]}"


def with_variables(*more: dict[str, Any]) -> dict[str, Any]:
    first = {"name": "cu", "structures": ["cu.extxyz"], "variables": VARIABLES}
    return {**MINIMAL, "systems": [first, *more]}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["walkers.metadynamics={variables: [phi, d], widths: [20]}"], "widths has 1 numbers for 2 variables"),
        (["walkers.metadynamics={variables: [d, d], widths: [1, 1]}"], "names one twice: ['d', 'd']; name each once"),
        (["walkers.metadynamics={variables: [psi], widths: [20]}"], "has no variable 'psi' (it has ['phi', 'd', 'V'])"),
        (["walkers.metadynamics={variables: [phi], widths: [0.35]}"], "0.35 for 'phi' is not between 1 and 90 degrees"),
        (["walkers.metadynamics={variables: [d], widths: [-1]}"], "-1 for 'd' is not above 0"),
        (["walkers.metadynamics={variables: [V], widths: [20]}"], "the cell does not move; set walkers.barostat"),
        ([HILLS, "walkers.metadynamics.every=7"], "(7) is not a multiple of walkers.stop.check_every (5)"),
        ([HILLS, "walkers.metadynamics.bias_factor=1"], "walkers.metadynamics.bias_factor: must be greater than 1"),
        (
            [
                "uncertainty={kind: committee}",
                "potential.members=2",
                "walkers.bias={tau: 0, quantity: atomic, schedule: {kind: adaptive, steps: 100}}",
            ],
            "walkers.bias.quantity is atomic but uncertainty.kind is committee",
        ),
        (["walkers.bias.tau_stress=0.2"], "walkers.bias.tau_stress is 0.2 but the cell does not move"),
        (
            [BAROSTAT, "walkers.pressures_MPa=[0, 250, -250]", "walkers.count=2", "walkers.batch=2"],
            "walkers.count (2) is less than the 3 conditions",
        ),
        (["walkers.pressures_MPa=[0, 250]"], "walkers.pressures_MPa is [0.0, 250.0] but the cell does not move"),
        (
            ["walkers.bias.schedule={kind: adaptive, steps: 100, least: 1, most: 0.5}"],
            "walkers.bias.schedule.least (1) is not below walkers.bias.schedule.most (0.5)",
        ),
        (
            ["walkers.bias.schedule={kind: adaptive, steps: 100, least: 0.3, most: 0.5}"],
            "walkers.bias.tau (0.25), which walkers start from, is not between walkers.bias.schedule.least (0.3)",
        ),
        (
            [HILLS, "walkers.metadynamics.every=105", "walkers.max_steps=100"],
            "walkers.metadynamics.every (105) exceeds walkers.max_steps (100): a walker is replaced before; lower",
        ),
        (
            ["walkers.store_every=300", "walkers.max_steps=200"],
            "walkers.store_every (300) exceeds walkers.max_steps (200)",
        ),
        (
            ["walkers.bias.schedule={kind: ramp, steps: 20001}"],
            "walkers.bias.schedule.steps (20001) exceeds walkers.max_steps (20000)",
        ),
        (
            ["walkers.bias.update_every=20", "walkers.bias.window_steps=10"],
            "walkers.bias.update_every (20) exceeds walkers.bias.window_steps (10)",
        ),
        (
            [BAROSTAT, "walkers.bias={tau_stress: 0.2, update_every: 20, stress_window_steps: 10}"],
            "lower walkers.bias.update_every or raise walkers.bias.stress_window_steps",
        ),
    ],
)
def test_a_bias_or_hills_that_cannot_be_are_refused(tmp_path: Path, overrides: list[str], expected: str) -> None:
    assert expected in problems_of(tmp_path, with_variables(), *overrides)


def test_what_never_acts_may_be_as_late_as_it_likes(tmp_path: Path) -> None:
    plain = "walkers.bias={tau: 0, update_every: 20, window_steps: 10}"
    assert not load_campaign(write(tmp_path, with_variables()), [plain]).settings.walkers.bias.may_act
    rigid = "walkers.bias={update_every: 20, stress_window_steps: 10}"
    assert load_campaign(write(tmp_path, with_variables()), [rigid]).settings.walkers.bias.update_every == 20


PHI, REACH, VOLUME = VARIABLES


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ([PHI, {**REACH, "name": "phi"}], "variables: two variables share a name in ['phi', 'phi']; give each its own"),
        ([{**PHI, "atoms": [4, 6, 6, 14]}], "[0].atoms: [4, 6, 6, 14] names an atom twice; name each once"),
        ([{**REACH, "atoms": [1, 1]}], "[0].atoms: [1, 1] names an atom twice"),
        ([{**REACH, "range_A": [3, 1]}], "[0].range_A: [3.0, 1.0] does not rise; write the lower end first"),
        ([{**VOLUME, "range_A3": [900, 900]}], "[0].range_A3: [900.0, 900.0] does not rise"),
        ([*VARIABLES, {**REACH, "name": "e"}], "variables: must have at most 3 items"),
    ],
)
def test_variables_that_cannot_be_followed_are_refused(
    tmp_path: Path, variables: list[dict[str, Any]], expected: str
) -> None:
    system = {"name": "cu", "structures": ["cu.extxyz"], "variables": variables}
    assert expected in problems_of(tmp_path, {**MINIMAL, "systems": [system]})


def test_coverage_cannot_end_a_campaign_that_follows_no_variable(tmp_path: Path) -> None:
    said = problems_of(tmp_path, {**MINIMAL, "stop": {"coverage": {}}})
    assert "stop.coverage is set but no system has variables" in said
    assert "give systems[].variables" in said


@pytest.mark.parametrize(
    ("site", "key"),
    [
        ("{kind: inline}", "site.kind inline counts no GPU"),
        ("{kind: local_threads}", "site.gpus"),
        ("{kind: local_htex}", "site.gpus is 0"),
        (
            "{kind: slurm, walk: {walltime: 3600, cores_per_node: 8}, label: {walltime: 3600, cores_per_node: 8, "
            "gpus_per_node: 4}}",
            "give site.walk.gpus_per_node",
        ),
    ],
)
def test_gpu_hours_end_nothing_where_none_are_counted(tmp_path: Path, site: str, key: str) -> None:
    problems = problems_of(tmp_path, MINIMAL, "stop.max_gpu_h=5", f"site={site}")
    assert "stop.max_gpu_h is 5 but" in problems
    assert key in problems


def test_a_variable_with_hills_is_of_one_kind_in_all_systems(tmp_path: Path) -> None:
    both = with_variables({"name": "al", "structures": ["al.extxyz"], "variables": OTHER_KIND})
    text = problems_of(tmp_path, both, HILLS)
    assert "'phi' is a dihedral in cu, a distance in al, but its hills have one width; rename one of them" in text


def test_hills_schedules_and_moving_cells_load(tmp_path: Path) -> None:
    overrides = [
        BAROSTAT,
        "walkers.metadynamics={variables: [V, phi], widths: [40, 20], every: 50, bias_factor: 5}",
        "walkers.bias={tau: 0.2, tau_stress: 0.3, schedule: {kind: adaptive, steps: 500, most: 0.8}}",
        "walkers.pressures_MPa=[0, -250]",
    ]
    settings = load_campaign(write(tmp_path, with_variables()), overrides).settings
    assert [variable.name for variable in settings.hill_variables["cu"]] == ["V", "phi"]
    assert load_campaign(write(tmp_path, with_variables())).settings.hill_variables == {}


QE = {"kind": "quantum_espresso", "pseudopotentials": "/pseudo", "cutoff_Ry": 20}
SLURM: dict[str, Any] = {
    "kind": "slurm",
    "walk": {"walltime": "01:00:00", "cores_per_node": 4},
    "label": {"walltime": "06:00:00", "cores_per_node": 8, "cores_per_worker": 4, "drain": "02:00:00"},
}


def site_problems(directory: Path, site: dict[str, Any], *overrides: str) -> str:
    labels = {"reference": QE, "budget": 64}
    return problems_of(directory, {**MINIMAL, "labels": labels, "site": site}, *overrides)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["site.launch.ranks=3", "site.launch.threads=2"], "ranks × launch.threads is 6, but a label task has 4 cores"),
        (["site.launch.ranks=8"], "launch.ranks × launch.threads is 8, but a label task has 4 cores"),
        (
            ["site.launch.ranks=9", "site.launch.nodes=2", "site.label.nodes_per_block=2"],
            "launch.ranks / launch.nodes × launch.threads is 5, but a label task has 4 cores on each node",
        ),
        (
            ["site.launch.threads=5", "site.launch.nodes=2", "site.label.nodes_per_block=2"],
            "launch.ranks / launch.nodes × launch.threads is 5, but a label task has 4 cores on each node",
        ),
        (["site.label.drain=00:02:59"], "site.label.drain (179 s) is below 180 s"),
        (["site.launch.nodes=2"], "label.nodes_per_block (1) is not a multiple of launch.nodes (2)"),
        (
            ["site.launch.nodes=2", "site.label.nodes_per_block=4"],
            "use srun --exact there, or set nodes_per_block to 2",
        ),
        (
            ["site.launch.nodes=2", "site.label.nodes_per_block=2", "site.label.launcher=srun"],
            "label.launcher is srun",
        ),
        (["site.launch.nodes=2", "site.launch.ranks=1"], "ranks (1) is below nodes (2)"),
        (["site.launch.time_limit=06:00:00"], "does not fit into site.label.walltime (21600 s)"),
        (["site.launch.time_limit=02:30:00"], "site.launch.time_limit (9000 s) exceeds site.label.drain (7200 s)"),
        (["site.launch.mpi=mpirun -n {rank}"], "may hold only {ranks}, {nodes}, {threads}, {memory_MB}"),
        (["site.launch.mpi=mpirun -n 4"], "does not say how many ranks"),
    ],
)
def test_a_label_that_its_jobs_cannot_hold_is_refused(tmp_path: Path, overrides: list[str], expected: str) -> None:
    assert expected in site_problems(tmp_path, SLURM, *overrides)


def test_a_laptop_is_one_node_with_the_cores_of_a_label_task(tmp_path: Path) -> None:
    text = site_problems(tmp_path, {"kind": "local_htex", "launch": {"ranks": 4, "nodes": 2}})
    assert "only kind: slurm has more" in text
    assert "a label task has 1 cores on each node (label_threads)" in text


def test_training_has_a_core_for_each_of_its_ranks(tmp_path: Path) -> None:
    told = problems_of(tmp_path, MINIMAL, "site.kind=local_htex", "site.train_ranks=4", "site.train_threads=2")
    assert "train_ranks is 4, but training has 2 cores (train_threads)" in told
    told = problems_of(tmp_path, {**MINIMAL, "site": SLURM}, "site.train_ranks=4")
    assert "(walk.cores_per_worker)" in told


def test_a_try_of_a_label_takes_what_the_drain_leaves_where_no_limit_is_given(tmp_path: Path) -> None:
    path = write(tmp_path, {**MINIMAL, "labels": {"reference": QE, "budget": 64}, "site": SLURM})
    assert load_campaign(path, ["site.label.drain=00:40:00"]).settings.site.label_launch.limit_s == 2400
    assert load_campaign(path, ["site.launch.time_limit=00:05:00"]).settings.site.label_launch.limit_s == 300
    assert load_campaign(path, ["site={kind: local_htex}"]).settings.site.label_launch.limit_s == 7200


def test_ranks_that_fill_every_node_of_a_label_are_taken(tmp_path: Path) -> None:
    path = write(tmp_path, {**MINIMAL, "labels": {"reference": QE, "budget": 64}, "site": SLURM})
    over_two = ["site.launch.nodes=2", "site.label.nodes_per_block=2"]
    assert load_campaign(path, [*over_two, "site.launch.ranks=8"]).settings.site.launch.ranks_for(4) == 8
    launch = load_campaign(path, [*over_two, "site.launch.threads=3"]).settings.site.launch
    assert launch.ranks_for(5) == 2, "one on each node, not three"


@pytest.mark.parametrize(
    "reference",
    [
        CP2KReference(template="my.inp", guess="nearest"),
        QuantumEspressoReference(template="my.in", pseudopotentials="pseudo"),
    ],
)
def test_resolved_settings_of_a_template_can_be_read_again(reference: DFTReference) -> None:
    assert type(reference).model_validate(reference.model_dump(mode="json")) == reference


def test_time_limits_of_programs_mean_nothing_to_a_reference_in_the_worker(tmp_path: Path) -> None:
    labels = {"reference": {"kind": "emt"}, "budget": 64}
    path = write(tmp_path, {**MINIMAL, "labels": labels, "site": SLURM})
    assert load_campaign(path, ["site.launch.time_limit=09:00:00"]).settings.site.launch.time_limit == 9 * 3600


def test_what_helps_failing_labels_may_change_and_the_level_of_theory_may_not(tmp_path: Path) -> None:
    path = write(tmp_path, {**MINIMAL, "labels": {"reference": QE, "budget": 64}})
    old = load_campaign(path).settings
    allowed = [
        "site.kind=local_htex",
        "site.launch.time_limit=60",
        "labels.reference.max_steps=300",
        "labels.recovery.max_tries=2",
    ]
    allowed += ["labels.energy_window_eV_per_atom=null", "labels.reference.pseudopotentials=/elsewhere/sssp"]
    new = load_campaign(path, allowed).settings
    assert refused_changes(old, new) == []
    assert science_digest(old) == science_digest(new)
    other = load_campaign(path, ["labels.reference.cutoff_Ry=30", "labels.reference.charge=1"]).settings
    assert len(refused_changes(old, other)) == 2
    cp2k = {"kind": "cp2k", "template": "a/b.inp"}
    path = write(tmp_path, {**MINIMAL, "labels": {"reference": cp2k, "budget": 64}})
    template = load_campaign(path).settings
    moved = load_campaign(path, ["labels.reference.template=c/b.inp"]).settings
    assert refused_changes(template, moved) == []


def test_labels_of_several_nodes_have_one_worker_for_each_group_of_nodes(tmp_path: Path) -> None:
    labels = {"reference": QE, "budget": 64}
    path = write(tmp_path, {**MINIMAL, "labels": labels, "site": SLURM})
    size = ["site.label.nodes_per_block=4", "site.label.max_blocks=3"]
    packed = load_campaign(path, size).settings.site
    assert isinstance(packed, SlurmSite)
    assert (packed.launcher("label"), packed.workers_per_pool("label"), packed.label_slots) == ("srun", 2, 24)
    spread = load_campaign(path, [*size, "site.launch.nodes=2", "site.launch.mpi=srun -n {ranks} -N {nodes}"]).settings
    assert isinstance(spread.site, SlurmSite)
    assert (spread.site.launcher("label"), spread.site.workers_per_pool("label")) == ("single", 2)
    assert spread.site.label_slots == 6
    alone = load_campaign(path, [*size, "site.label.launcher=single"]).settings.site
    assert isinstance(alone, SlurmSite)
    assert alone.label_slots == 6, "a single pool serves the first node of its job alone"
