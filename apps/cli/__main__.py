"""``python -m apps.cli`` is the ``farwalk`` command."""

from apps.cli.application import main

main()
