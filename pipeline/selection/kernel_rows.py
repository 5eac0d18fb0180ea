"""Kernel features of structures: the rows that selection methods compare.

Shapes: n structures, P features.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from pipeline.frames import BoolArray, FloatArray, Frame
from pipeline.potentials import Model
from pipeline.ranks import Ranks
from pipeline.selection.rows import Features, Rows

SINGLE_ABOVE_BYTES = 2**32
"""Features of all candidates that would take more in double precision are kept in single precision."""


def is_double(model: Model, count: int) -> bool:
    """Whether the features of ``count`` candidates are kept in double precision."""
    return count * model.first.feature_dimension * 8 <= SINGLE_ABOVE_BYTES


def origin(model: Model, known: Sequence[Sequence[Frame]], ranks: Ranks) -> FloatArray | None:
    """(P,) what distances are measured from when rows are kept in single precision: one of the structures that are known.

    What all rows have in common leaves distances alone, but takes the digits they are computed with. None: nothing is known.
    """
    first = next((group[:1] for group in known if group), [])
    own = model.kernel_features(first)[0] if first else None
    finite = [row for row in ranks.gather(own) if row is not None and np.isfinite(row).all()]
    return finite[0] if finite else None


def kernel_rows(
    model: Model, groups: Iterable[Sequence[Frame]], count: int, double: bool, batch: int, zero: FloatArray | None
) -> Features:
    """(n, P) kernel features of ``count`` structures as seen from ``zero``, group by group and in batches."""
    shape = (count, model.first.feature_dimension)
    features: Features = np.empty(shape, dtype=np.float64) if double else np.empty(shape, dtype=np.float32)
    done = 0
    for group in groups:
        if group:
            found = model.kernel_features(group, batch_size=batch)
            features[done : done + len(group)] = found if zero is None else found - zero
            done += len(group)
    return features


def comparable(features: Features) -> BoolArray:
    """(n,) where |x|² is a number that methods can compare."""
    finite: BoolArray = torch.isfinite(Rows(features).squares()).numpy()
    return finite
