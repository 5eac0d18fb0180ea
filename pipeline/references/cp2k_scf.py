"""How CP2K's SCF is made: what the settings say, and what a try does differently. Nothing here changes the level of theory.

All functions change a tree in place; they work on a preset's input and on a user's own alike.
"""

import math

from pipeline.records import Measure
from pipeline.references.cp2k_tree import Section, number
from pipeline.settings.dft import CP2KReference
from pipeline.units import BOLTZMANN_EV_PER_K

INNER_STEPS = 20
"""Of the orbital transformation, between two preconditioners."""
ALPHA, GENTLE_ALPHA = 0.3, 0.1
"""Share of the new density in the mixed one."""
WIDE_eV = 0.3
"""Smearing of SMEARED_START, or three times the settings' own where that is wider."""
SMEARED_CONVERGENCE = 1e-5
SMEARED_STEPS = 60
DIRECT = "DIRECT_P_MIXING"
"""CP2K's own mixing, of density matrices; good for insulators."""
_CP2K_STEPS = 50
_CP2K_CONVERGENCE = 1e-5
"""CP2K's own MAX_SCF and EPS_SCF."""
_KELVIN = {"K": 1.0, "K_TEMP": 1.0, "EV": 1 / BOLTZMANN_EV_PER_K}


def scf_section(settings: CP2KReference) -> Section:
    """The SCF of a preset."""
    scf = Section("SCF", items=["SCF_GUESS ATOMIC", f"EPS_SCF {settings.scf_convergence!r}"])
    ot = settings.smearing is None and settings.kpoints is None
    if settings.solver == "ot" or (settings.solver is None and ot):
        _use_ot(scf, settings.max_steps)
    else:
        _use_diagonalization(scf, settings.max_steps)
        if not ot:
            _mix_densities(scf)
    if settings.smearing is not None:
        moment = None if settings.multiplicity is None else str(settings.multiplicity - 1)
        _smear(scf, settings.smearing.width_eV, polarised=is_polarised(settings), moment=moment)
    return scf


def is_polarised(settings: CP2KReference) -> bool:
    """Whether spins differ."""
    return settings.multiplicity is not None or any(settings.magnetization.values())


def take_measures(dft: Section, measures: tuple[Measure, ...]) -> None:
    """Make the SCF of a DFT section as the measures ask; those that are no affair of the input change nothing."""
    scf = dft.at("SCF")
    steps = _total_steps(scf) * 3 ** measures.count(Measure.MORE_STEPS)
    if Measure.OTHER_SOLVER in measures:
        _take_other_solver(dft, steps)
    if Measure.MORE_STEPS in measures:
        if scf.on("OT"):
            _spread_steps(scf, steps)
        else:
            scf.put("MAX_SCF", steps)
    if Measure.GENTLE_MIXING not in measures:
        return
    if scf.on("OT"):
        ot = scf.at("OT")
        ot.put("MINIMIZER", "CG")
        ot.put("LINESEARCH", "3PNT")
        return
    mixing = scf.at("MIXING")
    mixing.put("ALPHA", GENTLE_ALPHA)
    if (mixing.value("METHOD") or DIRECT).upper() == DIRECT:
        scf.put("MAX_DIIS", 8)
    else:
        mixing.drop("NPULAY", "NBROYDEN", "NMULTIPOLE")
        mixing.put("NBUFFER", 16)


def smear_widely(dft: Section) -> bool:
    """Make the SCF of the first half of SMEARED_START: its density is a start, its energy is nothing.

    Where spins are apart, the total moment is held at the one the settings start with (or fix): left to itself it would
    vanish under so wide a smearing, and the second half might stay in a state without moments.

    Returns:
        False, and nothing is changed, where spins are apart and that moment is zero or unknown, or cannot be held (k-points).
    """
    scf = dft.at("SCF")
    polarised, own_eV = spins_apart(dft), 0.0
    moment = _starting_moment(dft) if polarised else None
    if moment is not None and (moment <= 0 or _has_kpoints(dft)):
        return False
    if scf.on("SMEAR"):
        width = scf.at("SMEAR").value("ELECTRONIC_TEMPERATURE", "ELEC_TEMP", "TELEC") or "300"
        own_eV = number(width, _KELVIN) * BOLTZMANN_EV_PER_K
    _use_diagonalization(scf, max(_total_steps(scf), SMEARED_STEPS))
    _mix_densities(scf)
    _smear(scf, max(WIDE_eV, 3 * own_eV), polarised=polarised, moment=None if moment is None else f"{moment:g}")
    scf.put("EPS_SCF", max(SMEARED_CONVERGENCE, _convergence(scf)))
    return True


def start_from(dft: Section, file: str) -> None:
    """Begin with a wave function (or density) that lies in the calculation's directory."""
    dft.drop("RESTART_FILE_NAME")
    dft.put("WFN_RESTART_FILE_NAME", file)
    dft.at("SCF").put("SCF_GUESS", "RESTART")


def _take_other_solver(dft: Section, steps: int) -> None:
    """Minimise what was diagonalised and the other way round; with smearing or k-points mix otherwise."""
    scf = dft.at("SCF")
    if scf.on("OT"):
        _use_diagonalization(scf, steps)
        # the change of a density matrix says less than a gradient: forces are of first order in it
        scf.put("EPS_SCF", 0.01 * _convergence(scf))
    elif _knows_ot(dft):
        _use_ot(scf, steps)
    else:
        scf.at("MIXING").put("METHOD", "PULAY_MIXING")


def spins_apart(dft: Section) -> bool:
    """Whether an input treats the two spins apart."""
    values = dft.values("UKS", "LSD", "UNRESTRICTED_KOHN_SHAM", "SPIN_POLARIZED")
    return any(value.upper() not in ("F", ".FALSE.", "FALSE") for value in values)


def _starting_moment(dft: Section) -> float:
    """μB; 0: none, or nobody says."""
    scf = dft.at("SCF")
    fixed = scf.at("SMEAR").value("FIXED_MAGNETIC_MOMENT") if scf.on("SMEAR") else None
    if fixed is not None and number(fixed) >= 0:  # CP2K's default of -100 means that none is fixed
        return number(fixed)
    return max(number(dft.value("MULTIPLICITY", "MULTIP") or "0") - 1, 0.0)


def _has_kpoints(dft: Section) -> bool:
    kpoints = dft.find("KPOINTS")
    return kpoints is not None and (kpoints.value("SCHEME") or "NONE").split()[0].upper() not in ("NONE", "GAMMA")


def _knows_ot(dft: Section) -> bool:
    return not _has_kpoints(dft) and not dft.at("SCF").on("SMEAR") and dft.at("SCF").value("ADDED_MOS") is None


def _convergence(scf: Section) -> float:
    return number(scf.value("EPS_SCF") or repr(_CP2K_CONVERGENCE))


def _count(section: Section, name: str) -> int:
    return int(number(section.value(name) or str(_CP2K_STEPS)))


def _total_steps(scf: Section) -> int:
    steps = _count(scf, "MAX_SCF")
    outer = scf.find("OUTER_SCF")
    if outer is None or not scf.on("OUTER_SCF"):
        return steps
    return steps * (_count(outer, "MAX_SCF") + 1)


def _use_ot(scf: Section, steps: int) -> None:
    scf.drop("DIAGONALIZATION", "MIXING")
    scf.replace(Section("OT", items=["MINIMIZER DIIS", "PRECONDITIONER FULL_ALL"]))
    _spread_steps(scf, steps)


def _spread_steps(scf: Section, steps: int) -> None:
    """All steps as some times ``INNER_STEPS``: a new preconditioner helps as much as more steps."""
    outer = math.ceil(steps / INNER_STEPS)
    scf.put("MAX_SCF", min(steps, INNER_STEPS))
    if outer == 1:
        scf.drop("OUTER_SCF")
        return
    loop = scf.at("OUTER_SCF")
    loop.parameter = ""
    if loop.value("EPS_SCF") is None:
        loop.put("EPS_SCF", scf.value("EPS_SCF") or _CP2K_CONVERGENCE)
    loop.put("MAX_SCF", outer - 1)  # CP2K counts the loops after the first


def _use_diagonalization(scf: Section, steps: int) -> None:
    if not scf.on("DIAGONALIZATION"):
        scf.replace(Section("DIAGONALIZATION", items=["ALGORITHM STANDARD"]))
    scf.drop("OT", "OUTER_SCF")
    scf.put("MAX_SCF", steps)


def _mix_densities(scf: Section) -> None:
    """As metals and k-points want it."""
    if not scf.on("MIXING"):
        scf.replace(Section("MIXING", items=["METHOD BROYDEN_MIXING", f"ALPHA {ALPHA}", "NBUFFER 8"]))


def _smear(scf: Section, width_eV: float, *, polarised: bool, moment: str | None) -> None:
    """Fermi-Dirac with all the orbitals that the basis has; the moment is fixed where it is given."""
    scf.put("ADDED_MOS", "-1 -1" if polarised else "-1")
    items: list[Section | str] = ["METHOD FERMI_DIRAC", f"ELECTRONIC_TEMPERATURE {width_eV / BOLTZMANN_EV_PER_K!r}"]
    if moment is not None:
        items.append(f"FIXED_MAGNETIC_MOMENT {moment}")
    scf.replace(Section("SMEAR", "ON", items=items))
