"""The file we add to a HELM run directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flexgen_helm.adapter.responses import Response, read_engine, read_statistics
from flexgen_helm.files import write_text_atomically
from flexgen_helm.specs.run_record import RUN_RECORD_FILE, RunRecord


def write_run_record(run_path: Path, answers: Sequence[tuple[Response, int]]) -> None:
    """Write what a run cost, summed up from at least one answer and how often it was given."""
    responses, counts = zip(*answers, strict=True)
    record = RunRecord.summarise(
        read_engine(responses[0]), [read_statistics(response) for response in responses], counts
    )
    write_text_atomically(run_path / RUN_RECORD_FILE, record.to_json())
