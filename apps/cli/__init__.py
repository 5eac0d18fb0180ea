"""The command line: the only place that configures logging and prints."""

from apps.cli.application import main

__all__ = ["main"]
