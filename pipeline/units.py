"""Units: eV, Å and amu inside, everything else is converted here, once.

Time inside is ASE's unit Å·√(amu/eV) ≈ 10.18 fs. A number in any other unit carries it in its name (``timestep_fs``).
"""

from ase import units as _ase

BOLTZMANN_EV_PER_K: float = float(_ase.kB)
"""Boltzmann constant, eV/K."""

FEMTOSECOND: float = float(_ase.fs)
"""One femtosecond in internal time units Å·√(amu/eV)."""

PICOSECOND: float = 1000.0 * FEMTOSECOND
"""One picosecond in internal time units."""

GIGAPASCAL: float = float(_ase.GPa)
"""One gigapascal in eV/Å³."""

KILOJOULE_PER_MOL: float = float(_ase.kJ / _ase.mol)
"""One kJ/mol in eV."""

NANOMETRE: float = float(_ase.nm)
"""One nanometre in Å."""

HARTREE: float = float(_ase.Hartree)
"""One Hartree in eV."""

RYDBERG: float = float(_ase.Rydberg)
"""One Rydberg in eV."""

BOHR: float = float(_ase.Bohr)
"""One Bohr radius in Å."""
