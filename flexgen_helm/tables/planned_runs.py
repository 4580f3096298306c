"""Runs that are not made yet, as a dry run shows them."""

from __future__ import annotations

from flexgen_helm.tables.columns import Column

PLANNED_RUNS = (
    Column("task", "string", "", "task"),
    Column("model", "string", "", "model"),
    Column("compression", "string", "", "compression"),
    Column("max_instances", "Int64", "", "max_eval_instances"),
    Column("train_trials", "Int64", "", "num_train_trials"),
    Column("done", "string", "", "done"),
)
"""One row per run: how many instances it has at most, each for so many selections of few-shot
examples, and whether all of its files are there."""
