"""What a try of pw.x does differently, in terms of its input. None of it changes what is converged to."""

import re
from collections.abc import Sequence
from math import prod
from pathlib import Path
from xml.etree import ElementTree

from pipeline.records import Measure
from pipeline.references.espresso_input import PREFIX, Sent
from pipeline.references.espresso_text import PwInput, Value

MEASURES = frozenset(Measure)
SAVE = f"{PREFIX}.save"
SCHEMA = f"{SAVE}/data-file-schema.xml"
DENSITIES = ("charge-density.dat", "charge-density.hdf5")
RESTART_FILES = (f"{SAVE}/charge-density.*", f"{SAVE}/data-file-schema.xml", f"{SAVE}/paw.txt", f"{SAVE}/occup.txt")
"""The density, what it belongs to, and the occupations inside PAW spheres and of Hubbard manifolds."""
WIDE_SMEARING_RY = 0.05
MORE_STEPS_FACTOR = 3
GENTLE_FACTOR = 0.4
LOOSE_CONVERGENCE_RY = 1e-4
_DEFAULTS = {"electron_maxstep": 100.0, "mixing_beta": 0.7, "mixing_ndim": 8.0}


def with_measures(planned: PwInput, measures: Sequence[Measure], *, time_s: float) -> PwInput:
    """An input that does the same calculation another way.

    Args:
        planned: the input as the settings or the template have it.
        measures: in the order they were taken.
        time_s: wall time the program may take.
    """
    electrons: dict[str, Value] = {}

    def planned_number(key: str) -> float:
        number = planned.number("electrons", key)
        return _DEFAULTS[key] if number is None else number

    if more := measures.count(Measure.MORE_STEPS):
        electrons["electron_maxstep"] = int(planned_number("electron_maxstep")) * MORE_STEPS_FACTOR**more
    if gentle := measures.count(Measure.GENTLE_MIXING):
        electrons["mixing_beta"] = round(planned_number("mixing_beta") * GENTLE_FACTOR**gentle, 6)
        electrons["mixing_ndim"] = int(planned_number("mixing_ndim")) + 4 * gentle
        if planned.value("system", "occupations") == "smearing":
            # screens charge sloshing, which metals and their surfaces have
            electrons["mixing_mode"] = "local-TF"
    if Measure.OTHER_SOLVER in measures:
        usual = planned.value("electrons", "diagonalization") in ("", "david", "davidson")
        electrons["diagonalization"] = "cg" if usual else "david"
    made = planned.with_values("electrons", electrons)
    return made.with_values("control", {"max_seconds": round(own_limit_s(time_s), 3), "disk_io": "low"})


def own_limit_s(time_s: float) -> float:
    """When pw.x is to end by itself, at its next SCF step: it then leaves a density to go on from, which a killed one does not.

    Args:
        time_s: its time limit.
    """
    spare = min(0.1 * time_s + 1.0, 600.0)
    return max(time_s - spare, 0.5 * time_s)


def from_density(planned: PwInput) -> PwInput:
    """The same calculation from the density in its directory."""
    return planned.with_values("electrons", {"startingpot": "file"})


def loses_moments(planned: PwInput) -> bool:
    """Whether wide smearing could leave a density without magnetic moments, from which the planned calculation may end in a
    state that is not magnetic and higher in energy: where spins are apart, unless a total moment that is not zero is fixed.
    """
    noncollinear = planned.flag("system", "noncolin") or planned.number("system", "nspin") == 4
    # pw.x means a free moment by -1 or -10000
    fixed = (planned.number("system", "tot_magnetization") or 0.0) > 0
    return noncollinear or (planned.number("system", "nspin") == 2 and not fixed)


def smeared_start(planned: PwInput) -> PwInput:
    """A calculation with wide smearing, loosely converged, whose density is a good start for the planned one.

    Charge and total moment are the planned ones where these are fixed. It is no start where it :func:`loses_moments`: the
    measure then is a fresh start with those accumulated.
    """
    width = max(WIDE_SMEARING_RY, 3 * (planned.number("system", "degauss") or 0.0))
    smeared = planned.with_values("system", {"occupations": "smearing", "smearing": "fermi-dirac", "degauss": width})
    # as many bands as smearing needs, not as many as the template says for fixed occupations
    smeared = smeared.without("system", ["nbnd"])
    threshold = max(planned.number("electrons", "conv_thr") or 0.0, LOOSE_CONVERGENCE_RY)
    smeared = smeared.with_values("electrons", {"conv_thr": threshold})
    return smeared.with_values("control", {"tprnfor": False, "tstress": False})


def density_fits(directory: Path, sent: Sent) -> bool:
    """Whether a calculation's directory holds a density of the same species in the same order and of the same spin."""
    save = directory / SAVE
    if not any((save / name).is_file() for name in DENSITIES):
        return False
    try:
        root = ElementTree.parse(directory / SCHEMA).getroot()
    except (OSError, LookupError, ElementTree.ParseError):
        return False
    names = tuple(atom.get("name") for atom in root.iterfind("output/atomic_structure/atomic_positions/atom"))
    lsda = (root.findtext("output/magnetization/lsda") or "").strip()
    return names == sent.labels and (lsda == "true") == sent.spin


def pools(planned: PwInput, measures: Sequence[Measure], ranks: int) -> int:
    """Groups of ranks that share the k-points: as many as divide the ranks and have a k-point each.

    Each pool holds all of the density; so there is one where memory ran out.
    """
    option, rows = planned.cards.get("K_POINTS", ("gamma", ()))
    if option.lower() != "automatic" or not rows or {Measure.MORE_MEMORY, Measure.FEWER_RANKS} & set(measures):
        return 1
    mesh = [int(number) for number in re.findall(r"\d+", rows[0])[:3]]
    # at least half of the mesh is left by time reversal; symmetry, where it is used, may leave one point
    symmetric = not planned.flag("system", "nosym")
    points = 1 if symmetric else (prod(mesh) + 1) // 2
    return max(number for number in range(1, ranks + 1) if ranks % number == 0 and number <= points)
