"""From reference settings to a labeler, to what it can label, and to a digest of the physics."""

import hashlib
import json
import threading
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

import openmm
from ase.calculators.emt import parameters as emt_parameters
from ase.data import atomic_numbers

from pipeline.references.ase_calculator import EMTLabeler, calculator_labeler
from pipeline.references.base import Labeler
from pipeline.references.cp2k import CP2KLabeler, cp2k_facts, cp2k_numbers
from pipeline.references.openmm import OpenMMLabeler, read_topology, topology_numbers
from pipeline.references.quantum_espresso import QuantumEspressoLabeler, espresso_facts, espresso_numbers
from pipeline.settings.dft import CP2KReference, QuantumEspressoReference
from pipeline.settings.labels import ASEReference, EMTReference, OpenMMReference, Reference


class _Ready(threading.local):
    """One thread's labelers and digests by settings: building an OpenMM context costs 100 labels."""

    def __init__(self) -> None:
        self.labelers: dict[str, tuple[Labeler, str]] = {}


_READY = _Ready()


def build_reference(settings: Reference) -> Labeler:
    """A new labeler.

    Raises:
        SettingsError: files or packages are missing, or arguments are wrong.
    """
    match settings:
        case EMTReference():
            return EMTLabeler()
        case OpenMMReference():
            return OpenMMLabeler(settings)
        case ASEReference():
            return calculator_labeler(settings)
        case CP2KReference():
            return CP2KLabeler(settings)
        case QuantumEspressoReference():
            return QuantumEspressoLabeler(settings)


def ready_reference(settings: Reference) -> tuple[Labeler, str]:
    """This thread's labeler for these settings, built when it is the first time, and the digest of its physics.

    Those that start a program are built each time: it reads its files anew for every label, and they may have changed.

    Raises:
        SettingsError: as :func:`build_reference`.
    """
    if isinstance(settings, CP2KReference | QuantumEspressoReference):
        labeler = build_reference(settings)  # says best what is missing
        digest = reference_digest(settings)
        return labeler, digest
    key = settings.model_dump_json()
    if key not in _READY.labelers:
        _READY.labelers[key] = (build_reference(settings), reference_digest(settings))
    return _READY.labelers[key]


def supported_elements(settings: Reference) -> frozenset[int] | None:
    """Atomic numbers the reference can label; None when it does not say.

    Raises:
        SettingsError: the topology cannot be read.
    """
    match settings:
        case EMTReference():
            return frozenset(atomic_numbers[symbol] for symbol in emt_parameters)
        case OpenMMReference():
            return frozenset(int(z) for z in topology_numbers(read_topology(settings)))
        case QuantumEspressoReference():
            return espresso_numbers(settings)
        case CP2KReference():
            return cp2k_numbers(settings)
        case ASEReference():
            return None


def reference_digest(settings: Reference) -> str:
    """16 hex digits that change when the physics may: settings, contents of files, versions of packages.

    Where a file lies does not matter; what is in it does.
    """
    facts: dict[str, Any] = {"kind": settings.kind}
    match settings:
        case EMTReference():
            facts["ase"] = version("ase")
        case OpenMMReference():
            facts["openmm"] = version("openmm")
            facts["topology"] = _content(settings.topology)
            facts["force_field"] = [_content(name) for name in settings.force_field]
        case ASEReference():
            facts["calculator"], facts["arguments"] = settings.calculator, settings.arguments
            facts |= _package_versions("ase", settings.calculator.partition(".")[0])
        case CP2KReference():
            facts |= cp2k_facts(settings)
        case QuantumEspressoReference():
            facts |= espresso_facts(settings)
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _content(name: str) -> str:
    """Digest of a file, looked for as a path, then in OpenMM's data directory; the name where there is none."""
    for path in (Path(name), Path(openmm.__file__).parent / "app" / "data" / name):
        if path.is_file():
            return hashlib.sha256(path.read_bytes()).hexdigest()
    return name


def _package_versions(*modules: str) -> dict[str, str]:
    """Installed versions of the distributions that provide modules."""
    distributions = packages_distributions()
    versions = {}
    for module in modules:
        for name in distributions.get(module, ()):
            try:
                versions[name] = version(name)
            except PackageNotFoundError:
                versions[name] = "unknown"
    return versions
