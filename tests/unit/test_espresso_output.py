"""The reader of pw.x's results, on real outputs: what it reads, and that damaged ones give no label."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.records import Cause
from pipeline.references.base import CalculationFailed, Properties
from pipeline.references.espresso_failure import failure
from pipeline.references.espresso_input import Sent
from pipeline.references.espresso_output import PRINTED, VOIGT, read_properties
from pipeline.references.espresso_text import read_input
from pipeline.references.program import Ended
from pipeline.units import BOHR, RYDBERG

STORED = Path(__file__).parents[1] / "dft" / "espresso"
MD5 = {
    "Si.pbe-rrkj.UPF": "d7f89eb60b7b396f5f4f9eaa825fcfdc",
    "O.pbe-rrkjus.UPF": "932f1ddd01dba2749558f1893c74a415",
    "H.pbe-kjpaw.UPF": "a225a3f3a1be5237eb8f6a7e61cbb4ee",
}
CASES = ["silicon", "silicon-smeared", "oxygen-spin", "hydrogen-molecule"]
DAMAGES = 200


def sent(name: str) -> Sent:
    text = read_input((STORED / f"{name}.in").read_text())
    rows = [row.split() for row in text.cards["ATOMIC_POSITIONS"][1]]
    return Sent(
        labels=tuple(row[0] for row in rows),
        md5=tuple(MD5[row.split()[2]] for row in text.cards["ATOMIC_SPECIES"][1]),
        cell=np.array([row.split() for row in text.cards["CELL_PARAMETERS"][1]], dtype=float),
        positions=np.array([row[1:] for row in rows], dtype=float),
        stress=text.flag("control", "tstress"),
        spin=text.number("system", "nspin") == 2,
    )


def files(name: str) -> tuple[bytes, bytes]:
    return (STORED / f"{name}.out").read_bytes(), (STORED / f"{name}.xml").read_bytes()


def label(name: str, output: bytes, schema: bytes, *, moments: bool = False) -> Properties:
    return read_properties(output.decode(errors="replace"), schema, sent(name), moments=moments)


def same_to_the_printed_digits(one: Properties, other: Properties) -> bool:
    """Both numbers are within half a unit of the same printed one."""
    if abs(one.energy - other.energy) > 2 * PRINTED * RYDBERG:
        return False
    if not (np.abs(one.forces - other.forces) <= 2 * PRINTED * RYDBERG / BOHR).all():
        return False
    if one.stress is None or other.stress is None:
        return one.stress is other.stress
    return bool((np.abs(one.stress - other.stress) <= 2 * PRINTED * RYDBERG / BOHR**3).all())


def damaged(rng: np.random.Generator, name: str) -> tuple[bytes, bytes]:
    """The two files of a calculation, one or both of them not what pw.x wrote."""
    mine = list(files(name))
    others = [case for case in [*CASES, "silicon-moved"] if case != name]
    theirs = files(others[rng.integers(len(others))])
    which = int(rng.integers(2))
    content = mine[which]
    place = int(rng.integers(len(content)))
    kind = rng.integers(7)
    if kind <= 1:
        mine[which] = content[:place]
    elif kind <= 3:
        mine[which] = content[:place] + bytes([rng.integers(256)]) + content[place + 1 :]
    elif kind == 4:
        mine[which] = content[:place] + bytes([content[place] ^ (1 << int(rng.integers(8)))]) + content[place + 1 :]
    elif kind == 5:
        pair = [content, theirs[which]]
        mine[which] = pair[int(rng.integers(2))] + pair[int(rng.integers(2))]
    else:
        cut = int(rng.integers(len(theirs[which])))
        mine[which] = content[:place] + theirs[which][cut:]
    return mine[0], mine[1]


@pytest.mark.parametrize("name", CASES)
def test_a_damaged_output_gives_no_label_or_the_same_one(name: str) -> None:
    whole = label(name, *files(name))
    rng = np.random.default_rng(CASES.index(name))
    refused, wrong = 0, []
    for number in range(DAMAGES):
        pair = damaged(rng, name)
        try:
            found = label(name, *pair)
        except CalculationFailed:
            refused += 1
        else:
            if not same_to_the_printed_digits(found, whole):
                wrong.append(number)
    assert not wrong, f"{refused} of {DAMAGES} damaged outputs refused, {len(wrong)} read as other labels: {wrong}"
    assert refused > DAMAGES / 3, f"only {refused} of {DAMAGES} damaged outputs refused"


@pytest.mark.parametrize("name", CASES)
def test_every_flipped_digit_of_a_result_is_refused_or_below_the_printed_rounding(name: str) -> None:
    output, schema = files(name)
    whole = label(name, output, schema)
    start = schema.index(b"<etot>")
    results = [(start, schema.index(b"</etot>")), (schema.index(b"<forces"), schema.index(b"</forces>"))]
    if b"<stress rank" in schema:
        results.append((schema.index(b"<stress rank"), schema.index(b"</stress>", start)))
    refused = tried = 0
    for begin, end in results:
        for place in range(begin, end, 3):
            if not schema[place : place + 1].isdigit():
                continue
            flipped = b"%d" % ((int(schema[place : place + 1]) + 5) % 10)
            tried += 1
            try:
                found = label(name, output, schema[:place] + flipped + schema[place + 1 :])
            except CalculationFailed:
                refused += 1
            else:
                assert same_to_the_printed_digits(found, whole), (name, place)
    assert refused > tried / 3, f"{refused} of {tried} flipped digits refused"


@pytest.mark.parametrize("name", CASES)
def test_results_of_another_structure_are_refused_even_when_they_agree_with_each_other(name: str) -> None:
    for other in [*CASES, "silicon-moved"]:
        if other == name or {name, other} == {"silicon", "silicon-smeared"}:
            continue  # the same structure
        with pytest.raises(CalculationFailed, match="torn or contradicts itself") as caught:
            label(name, *files(other))
        assert caught.value.cause is Cause.BAD_OUTPUT


def test_the_output_of_one_run_and_the_xml_of_another_give_no_label() -> None:
    with pytest.raises(CalculationFailed, match="disagree on the energy"):
        label("silicon", files("silicon")[0], files("silicon-smeared")[1])


def test_labels_are_the_xml_numbers_in_ase_units_and_sign() -> None:
    properties = label("silicon", *files("silicon"))
    text = files("silicon")[0].decode()
    printed = float(text.partition("!    total energy              =")[2].split()[0])
    assert properties.energy == pytest.approx(printed * RYDBERG, abs=1e-7)
    rows = text.partition("total   stress")[2].splitlines()[1:4]
    kbar = np.array([[float(word) for word in row.split()[3:]] for row in rows])
    assert properties.stress is not None
    # pw.x prints a positive number where the crystal would expand; 1 kbar is 0.1 GPa
    np.testing.assert_allclose(properties.stress, [-kbar[pair] / 1602.1766208 for pair in VOIGT], atol=1e-5)
    assert properties.program == "Quantum ESPRESSO 6.7MaX"
    assert properties.charges is None


def test_energy_with_smearing_is_the_free_energy() -> None:
    text = files("silicon-smeared")[0].decode()
    internal = float(text.partition("internal energy E=F+TS    =")[2].split()[0])
    entropy = float(text.partition("smearing contrib. (-TS)   =")[2].split()[0])
    energy = label("silicon-smeared", *files("silicon-smeared")).energy
    assert energy == pytest.approx((internal + entropy) * RYDBERG, abs=1e-6)
    assert abs(entropy) > 1e-6


def test_magnetic_moments_are_read_where_they_are_asked_for() -> None:
    triplet = label("oxygen-spin", *files("oxygen-spin"), moments=True)
    assert triplet.magnetic_moments is not None
    assert (triplet.magnetic_moments > 0.4).all()
    assert label("oxygen-spin", *files("oxygen-spin")).magnetic_moments is None
    assert label("silicon", *files("silicon"), moments=True).magnetic_moments is None


def test_torn_magnetic_moments_are_refused() -> None:
    output, schema = files("oxygen-spin")
    lines = output.decode().splitlines()
    torn = "\n".join(line for line in lines if "magn:" not in line or "atom:    1" in line)
    with pytest.raises(CalculationFailed, match="magnetic moments are torn"):
        read_properties(torn, schema, sent("oxygen-spin"), moments=True)


def test_another_pseudopotential_of_the_same_name_is_refused() -> None:
    output, schema = files("silicon")
    other = output.replace(MD5["Si.pbe-rrkj.UPF"].encode(), b"0" * 32)
    with pytest.raises(CalculationFailed, match="other pseudopotentials"):
        label("silicon", other, schema)


@pytest.mark.parametrize(
    ("name", "code", "cause", "words"),
    [
        ("not-converged", 2, Cause.NOT_CONVERGED, "in 2 steps"),
        ("odd-electrons", 1, Cause.BAD_INPUT, "labels.reference.smearing"),
        ("overlap", 1, Cause.BAD_GEOMETRY, "overlap"),
        ("missing-file", 1, Cause.MISSING_FILE, "Si.nowhere.UPF"),
        ("bad-input", 1, Cause.BAD_INPUT, "ecutwave"),
        ("out-of-time", 2, Cause.TIME_LIMIT, "site.launch.time_limit"),
    ],
)
def test_a_failure_is_classified_from_the_words_of_pw(name: str, code: int, cause: Cause, words: str) -> None:
    output = (STORED / f"failed-{name}.out").read_text()
    failed = failure(Ended(code=code, output=output, wall_s=1.0), "")
    assert failed is not None
    assert failed.cause is cause
    assert words in str(failed)


def test_words_that_reached_only_the_crash_file_are_used() -> None:
    crash = "%%%\n     task #         0\n     from readpp : error #         1\n     file X.UPF not found\n %%%\n"
    failed = failure(Ended(code=1, output="", wall_s=1.0), crash)
    assert failed is not None
    assert failed.cause is Cause.MISSING_FILE


@pytest.mark.parametrize("name", ["silicon", "oxygen-spin"])
def test_a_run_that_did_not_get_to_its_end_is_a_crash(name: str) -> None:
    output = files(name)[0].decode()
    assert failure(Ended(code=0, output=output, wall_s=1.0), "") is None
    for code, text in ((-9, output), (139, output), (1, ""), (0, output[: output.index("JOB DONE")])):
        failed = failure(Ended(code=code, output=text, wall_s=1.0), "")
        assert failed is not None
        assert failed.cause is Cause.CRASH
