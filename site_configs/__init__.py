"""Where tasks run: one file per kind of machine, each with ``make_config(run_dir, site, ...)``, fresh each call."""

LABELS = ("walk", "label", "select", "train")
"""Kinds of tasks: each site has a route from every one of them to one of its executors (``site.routes``)."""
