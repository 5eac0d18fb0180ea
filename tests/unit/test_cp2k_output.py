"""Labels from stored outputs of CP2K: whole, of other versions, and damaged in hundreds of ways."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import units

from pipeline.frames import Frame
from pipeline.records import Cause
from pipeline.references.base import CalculationFailed, Properties
from pipeline.references.cp2k_failures import find_failure
from pipeline.references.cp2k_geometry import Geometry, place
from pipeline.references.cp2k_output import Wanted, read_properties

STORED = Path(__file__).parents[1] / "dft" / "cp2k"
LABELLED = ("water", "silicon", "hydroxyl")


def stored(name: str) -> tuple[str, str, Wanted]:
    """Output, second file and question of a real calculation."""
    plain = json.loads((STORED / name / "frame.json").read_text())
    frame = Frame(
        numbers=np.array(plain["numbers"]),
        positions=np.array(plain["positions"]),
        cell=np.array(plain["cell"]),
        pbc=np.array(plain["pbc"]),
        system=plain["system"],
    )
    populations = name != "silicon"
    wanted = Wanted(geometry=place(frame), stress=True, charges=populations, magnetic_moments=populations)
    second = STORED / name / "label.scine"
    return (STORED / name / "label.out").read_text(), second.read_text() if second.is_file() else "", wanted


@pytest.mark.parametrize("name", LABELLED)
def test_a_real_output_gives_the_label_that_stands_in_it(name: str) -> None:
    output, second, wanted = stored(name)
    assert find_failure(output, 0, "") is None
    label = read_properties(output, second, wanted)
    energy = float(re.search(r"ENERGY\| Total FORCE_EVAL .* (\S+)\n", output)[1])
    assert label.energy == pytest.approx(energy * units.Hartree, abs=1e-10)
    first = re.search(r"Element +X +Y +Z *\n +1 +1 +\w+ +(\S+) +(\S+) +(\S+)", output).groups()
    assert label.forces[0] == pytest.approx([float(x) * units.Hartree / units.Bohr for x in first], abs=1e-9)
    xz = re.search(r"STRESS\| +x +\S+ +\S+ +(\S+)\n", output)[1]
    assert label.stress[4] == pytest.approx(-float(xz) * units.GPa, abs=1e-12)
    assert label.program == "CP2K 2023.1"


def test_charges_and_moments_are_those_of_a_radical() -> None:
    label = read_properties(*stored("hydroxyl"))
    assert label.charges == pytest.approx([-0.375, 0.375], abs=0.001)
    assert label.magnetic_moments == pytest.approx([1.031, -0.031], abs=0.001)


@pytest.mark.parametrize(
    ("name", "code", "cause", "words"),
    [
        ("unconverged", 0, Cause.NOT_CONVERGED, "did not converge in 2 steps"),
        ("no-basis", 1, Cause.MISSING_FILE, "basis set <DZVP-NOWHERE> for element <H> was not found"),
        ("no-file", 1, Cause.MISSING_FILE, "file <NO_POTENTIALS> cannot be opened"),
        ("wrong-spin", 1, Cause.BAD_INPUT, "LSD: try to use a different multiplicity. "),
    ],
)
def test_a_failure_is_named_in_cp2ks_own_words(name: str, code: int, cause: Cause, words: str) -> None:
    failure = find_failure(stored(name)[0], code, "")
    assert failure is not None
    assert failure.cause is cause
    assert words in f"{failure} "


def test_a_run_that_breaks_off_is_a_crash_and_an_abort_in_the_midst_of_the_scf_too() -> None:
    output = stored("water")[0]
    torn = output[: output.index("Total energy:")]
    killed = find_failure(torn, 137, "signal 9")
    assert killed is not None
    assert killed.cause is Cause.CRASH
    assert "signal 9" in str(killed)
    box = re.search(r" \*{79}\n \*   ___.*?\n \*{79}\n", stored("wrong-spin")[0], re.DOTALL)[0]
    aborted = find_failure(torn + box, 1, "")
    assert aborted is not None
    assert aborted.cause is Cause.CRASH


def test_what_cp2k_does_not_have_is_a_bad_input_even_where_it_says_so_late() -> None:
    output = stored("water")[0]
    box = re.search(r" \*{79}\n \*   ___.*?\n \*{79}\n", stored("wrong-spin")[0], re.DOTALL)[0]
    late = output[: output.index("Total energy:")] + box
    said = re.search(r"LSD: .*?  ", late)[0]
    for words in (
        "kpoints: Smearing with fixed magnetic moments not (yet) supported",
        "Stress Tensor not tested for 2D systems.",
    ):
        failure = find_failure(late.replace(said, words + "  "), 1, "")
        assert failure is not None
        assert (failure.cause, words in str(failure)) == (Cause.BAD_INPUT, True)


def test_a_density_that_only_seems_converged_is_no_label() -> None:
    output, second, wanted = stored("silicon")
    total = re.search(r"  Total energy: +(-\d+\.\d+)", output)[1]
    with pytest.raises(CalculationFailed) as failed:
        read_properties(output.replace(total, f"{float(total) + 2e-5:.14f}"), second, wanted)
    assert failed.value.cause is Cause.NOT_CONVERGED


def as_in_2025(output: str) -> str:
    """The tables that CP2K 2025 prints otherwise, from the same numbers."""
    output = output.replace("energy [a.u.]: ", "energy [hartree] ").replace("[GPa]", "[bar]")
    output = re.sub(
        r"(STRESS\| +(?:[xyz]|1/3 Trace|Eigenvalues) )((?: +\S+E\S+)+)",
        lambda m: m[1] + " ".join(f" {float(x) * 1e4:18.11E}" for x in m[2].split()),
        output,
    )
    output = re.sub(r"(STRESS\| Determinant +)(\S+)", lambda m: f"{m[1]}{float(m[2]) * 1e12:.11E}", output)
    head, table, tail = re.split(r" ATOMIC FORCES in \[a\.u\.\]\n\n.*\n((?:.*\n)*?) SUM OF ATOMIC FORCES.*\n", output)
    forces = np.array([[float(x) for x in row.split()[3:]] for row in table.splitlines()])
    rows = [
        f" FORCES| {i:6d} " + " ".join(f"{x:19.12E}" for x in (*force, np.linalg.norm(force)))
        for i, force in enumerate(forces, start=1)
    ]
    total = forces.sum(axis=0)
    lines = [
        " FORCES| Atomic forces [hartree/bohr]",
        " FORCES|   Atom     x                   y                   z                   |f|",
        *rows,
        " FORCES| Sum    " + " ".join(f"{x:19.12E}" for x in total),
        f" FORCES| Total atomic force {np.linalg.norm(total):.12E}",
    ]
    return head + "\n".join(lines) + "\n" + tail


@pytest.mark.parametrize("name", LABELLED)
def test_the_tables_of_2025_give_the_same_label(name: str) -> None:
    output, second, wanted = stored(name)
    assert same(read_properties(as_in_2025(output), second, wanted), read_properties(output, second, wanted))


def test_an_unknown_format_is_refused() -> None:
    output, second, wanted = stored("water")
    for known, unknown in (
        ("[a.u.]", "[Ry]"),
        ("[GPa]", "[kbar]"),
        ("SUM OF ATOMIC FORCES", "TOTAL"),
        ("# Atom", "# No"),
    ):
        with pytest.raises(CalculationFailed) as failed:
            read_properties(output.replace(known, unknown), second, wanted)
        assert failed.value.cause is Cause.BAD_OUTPUT


def test_the_label_of_another_structure_is_refused() -> None:
    output, second, wanted = stored("water")
    geometry = wanted.geometry
    others: list[Geometry] = [
        replace(geometry, positions=geometry.positions + 1e-5),
        replace(geometry, positions=geometry.positions[[0, 2, 1]]),
        replace(geometry, cell=geometry.cell * (1 + 1e-6)),
        replace(geometry, symbols=("O", "H", "D")),
        replace(geometry, symbols=geometry.symbols[:2], positions=geometry.positions[:2]),
    ]
    for other in others:
        with pytest.raises(CalculationFailed):
            read_properties(output, second, replace(wanted, geometry=other))


# damaged outputs


def same(one: Properties, other: Properties) -> bool:
    """To the printed rounding: 12 decimals of atomic units, 12 digits of the stress, 6 decimals of populations."""
    scale = float(np.abs(other.stress).max())
    pairs = [
        (one.energy, other.energy, 2e-10),
        (one.forces, other.forces, 3e-10),
        (one.stress, other.stress, 2e-9 * scale),
        (one.charges, other.charges, 1e-5),
        (one.magnetic_moments, other.magnetic_moments, 1e-5),
    ]
    return all(a is b or np.abs(np.asarray(a) - np.asarray(b)).max() <= most for a, b, most in pairs)


def refused(output: bytes, second: bytes, wanted: Wanted, right: Properties) -> bool:
    """Whether damaged files give no label; a wrong one is an error here."""
    text = output.decode("utf-8", errors="replace")
    if find_failure(text, 0, "") is not None:
        return True
    try:
        label = read_properties(text, second.decode("utf-8", errors="replace"), wanted)
    except CalculationFailed:
        return True
    assert same(label, right), f"a wrong label: {label} instead of {right}"
    return False


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize("new_format", [False, True])
def test_no_truncation_gives_a_label(name: str, new_format: bool) -> None:
    output, second, wanted = stored(name)
    output = as_in_2025(output) if new_format else output
    right = read_properties(output, second, wanted)
    generator = np.random.default_rng(1)
    raw, raw2 = output.encode(), second.encode()
    lengths = generator.integers(0, output.index("PROGRAM STOPPED IN"), 200)
    assert all(refused(raw[:length], raw2, wanted, right) for length in lengths)
    assert all(refused(raw, raw2[:length], wanted, right) for length in generator.integers(0, len(raw2), 50))


@pytest.mark.parametrize("name", LABELLED)
def test_flipped_bytes_give_no_label_or_the_same(name: str) -> None:
    """Everywhere, and again where the numbers stand."""
    output, second, wanted = stored(name)
    right = read_properties(output, second, wanted)
    generator = np.random.default_rng(2)
    raw = output.encode()
    numbers = (raw.index(b" ENERGY| Total"), raw.index(b" STRESS|      z", raw.index(b"Eigenvalues")))
    places = [*generator.integers(0, len(raw), 200), *generator.integers(*numbers, 200)]
    shares = {}
    for where, chosen in (("anywhere", places[:200]), ("energy, forces and stress", places[200:])):
        stopped = 0
        for place_ in chosen:
            damaged = bytearray(raw)
            damaged[place_] ^= int(generator.integers(1, 256))
            stopped += refused(bytes(damaged), second.encode(), wanted, right)
        shares[where] = stopped / len(chosen)
    second_stopped = 0
    for place_ in generator.integers(0, len(second), 100):
        damaged = bytearray(second.encode())
        damaged[place_] ^= int(generator.integers(1, 256))
        second_stopped += refused(raw, bytes(damaged), wanted, right)
    shares["second file"] = second_stopped / 100
    assert shares["energy, forces and stress"] > 0.95, f"refused: {shares}"
    assert shares["second file"] > 0.95, f"refused: {shares}"


def test_every_digit_of_energy_forces_and_stress_is_guarded() -> None:
    """Each of them changed by one: refused, or below the printed rounding."""
    output, second, wanted = stored("silicon")
    right = read_properties(output, second, wanted)
    start, end = output.index(" ENERGY| Total"), output.index("STRESS| Eigenvectors")
    digits = [i for i in range(start, end) if output[i].isdigit()]
    stopped = 0
    for i in digits:
        changed = output[:i] + str((int(output[i]) + 1) % 10) + output[i + 1 :]
        stopped += refused(changed.encode(), second.encode(), wanted, right)
    assert stopped > 0.7 * len(digits), f"refused: {stopped} of {len(digits)}"


def test_two_outputs_in_one_file_give_no_label() -> None:
    outputs = {name: stored(name) for name in LABELLED}
    generator = np.random.default_rng(3)
    for name, (output, second, wanted) in outputs.items():
        right = read_properties(output, second, wanted)
        for other, _, _ in outputs.values():
            assert refused((output + other).encode(), second.encode(), wanted, right)
            assert refused((other + output).encode(), second.encode(), wanted, right)
            for _ in range(30):  # one over the end, or the beginning, of another
                cut, later = generator.integers(0, len(output)), generator.integers(0, len(other))
                mixed = output[:cut] + other[later:]
                if other is not output:
                    assert refused(mixed.encode(), second.encode(), wanted, right), (name, cut, later)
                else:
                    refused(mixed.encode(), second.encode(), wanted, right)
