"""How numbers look to a person."""

from rich.console import Console

OUT = Console(highlight=False, soft_wrap=True)
"""Standard output of all verbs; rich resolves the stream when it prints."""


def duration(seconds: float) -> str:
    """``0.8 ms``, ``12 s``, ``3.4 min``, ``5.6 h`` or ``2.3 d``."""
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    for unit, length, limit in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 48 * 3600)):
        if seconds < limit:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 86400:.3g} d"


def core_hours(core_s: float) -> str:
    """Hours of one core, three digits; ``0`` for none, and nothing below a thousandth."""
    hours = core_s / 3600
    return "<0.001" if 0 < hours < 0.001 else f"{hours:.3g}"


def size(count: float) -> str:
    """Bytes in decimal units, ``1.2 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
