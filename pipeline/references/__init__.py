"""References: what labels structures."""

from pipeline.references.base import Labeler, Properties
from pipeline.references.build import build_reference, ready_reference, reference_digest, supported_elements

__all__ = ["Labeler", "Properties", "build_reference", "ready_reference", "reference_digest", "supported_elements"]
