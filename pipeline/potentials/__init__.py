"""Potentials behind one contract; ``load`` reads a published model."""

from pipeline.potentials.files import load, save
from pipeline.potentials.model import Model

__all__ = ["Model", "load", "save"]
