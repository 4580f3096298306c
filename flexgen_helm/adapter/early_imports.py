"""Importing what HELM will need while another process imports torch."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from helm.benchmark.run_spec import RunSpec
from helm.common.object_spec import get_class_by_name

from flexgen_helm.adapter.offline import bound_downloads
from flexgen_helm.adapter.random_state import RandomState


def import_metrics(run_specs: Iterable[RunSpec]) -> None:
    """Import what runs are scored with: a second for nltk and scipy alone.

    Some of these modules can only be imported in the main thread, and parked runs are in others.
    What cannot be imported fails again, and is reported, when its run's turn comes.
    """
    bound_downloads()
    state = RandomState.current()
    for name in {spec.class_name: None for run in run_specs for spec in run.metric_specs}:
        with suppress(Exception):
            get_class_by_name(name)
    state.restore()
