"""Model files: plain tensors and plain settings, checked against a digest, loaded without running code."""

import io
import json
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pipeline.durable import sha256_of, write_bytes_durably
from pipeline.errors import ModelError
from pipeline.potentials.gmnn import GMNN, FeatureSpec
from pipeline.potentials.model import Model
from pipeline.records import FileRef
from pipeline.settings.potential import GMNNSettings
from pipeline.uncertainty.estimator import Estimator

FORMAT = "farwalk-model"
SCHEMA = 1
_DAMAGE = (pickle.UnpicklingError, RuntimeError, OSError, EOFError, LookupError, AttributeError, TypeError, ValueError)
"""What torch and pickle raise on bytes that are no model, and on a model whose parts do not fit."""


def save(model: Model, path: str | Path, notes: dict[str, str] | None = None) -> FileRef:
    """Write a model under a temporary name, fsync, rename.

    Args:
        model: the model.
        path: where to.
        notes: provenance, plain strings.
    """
    first = model.first
    assert isinstance(first, GMNN)
    plain = {
        "format": FORMAT,
        "schema": SCHEMA,
        "kind": "gmnn",
        "version": model.version,
        "settings": first.settings.model_dump(mode="json"),
        "elements": list(first.elements),
        "features": asdict(first.feature_spec),
        "estimator": model.estimator.config(),
        "notes": dict(notes or {}),
    }
    # equal models have equal files: pickle would also store which strings happen to be one object in this process
    plain = json.loads(json.dumps(plain))
    payload = {
        **plain,
        "members": [member.state_dict() for member in model.members],
        "estimator": {"config": plain["estimator"], "state": model.estimator.state_dict()},
    }
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # into memory first: written to a path, the archive would carry the temporary name, and equal models differ
    archive = io.BytesIO()
    torch.save(payload, archive)
    return write_bytes_durably(target, archive.getvalue())


def load(path: str | Path, sha256: str | None = None) -> Model:
    """Read a model file.

    Args:
        path: the file.
        sha256: its expected digest; None skips the check.

    Raises:
        ModelError: missing, damaged, of another format or schema, or with another digest.
    """
    source = Path(path)
    if not source.is_file():
        raise ModelError(
            f"Model file {source} does not exist.", "Check the path, or export a model with `farwalk export`."
        )
    if sha256 is not None and (found := sha256_of(source)) != sha256:
        raise ModelError(
            f"Model file {source} has sha256 {found[:12]}…, expected {sha256[:12]}….", "It changed: restore it."
        )
    try:
        payload: Any = torch.load(source, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        raise ModelError(f"Model file {source} is damaged or not a farwalk model.", "Export it again.") from error
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise ModelError(f"{source} is not a farwalk model.", "Give a file written by `farwalk export --format model`.")
    if payload.get("schema") != SCHEMA:
        raise ModelError(
            f"{source} has model schema {payload.get('schema')}, this version reads {SCHEMA}.", "Export it again."
        )
    try:
        return _build(payload)
    except _DAMAGE as error:
        raise ModelError(
            f"The parts of model file {source} do not fit together: {error}", "Export it again."
        ) from error


def _build(payload: dict[str, Any]) -> Model:
    settings = GMNNSettings.model_validate(payload["settings"])
    # files from before there was a choice do not say so: their projections are Gaussian
    spec = FeatureSpec(**{"projection": "gaussian", **payload["features"]})
    if not payload["members"]:
        raise ValueError("it has no members")
    members = []
    for state in payload["members"]:
        member = GMNN(settings, payload["elements"], spec)
        member.to(state["radial.table"].dtype)
        member.offsets, member.unit_energy = member.offsets.double(), member.unit_energy.double()
        member.load_state_dict(state)
        members.append(member)
    estimator = Estimator.from_config(payload["estimator"]["config"], payload["estimator"]["state"])
    return Model(members, estimator, payload["version"])
