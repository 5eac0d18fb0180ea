"""References: what labels structures."""

from pipeline.references.base import Calculation, CalculationFailed, Labeler, Properties
from pipeline.references.build import build_reference, ready_reference, reference_digest, supported_elements

__all__ = [
    "Calculation",
    "CalculationFailed",
    "Labeler",
    "Properties",
    "build_reference",
    "ready_reference",
    "reference_digest",
    "supported_elements",
]
