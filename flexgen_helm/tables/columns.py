"""The tables as lists of columns, and the one way to turn what was read into a frame.

A column's *source* is a path of keys such as ``flexgen_run.engine.dtype``. Its first key names what
is looked into: a file of the run directory without ``.json``, or what `sources` derives from HELM's
``run_spec.json`` (``run``, ``deployment``). Alternatives are separated by ``|``; the first that
holds a value counts, and where none does the cell is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pandas as pd

Sources = Mapping[str, Any]
"""What one row is read from: nested dicts, by the first key of a source."""


class Column(NamedTuple):
    """One column of a table."""

    name: str
    """Its name; ends in the unit where there is one."""

    dtype: str
    """pandas dtype; a missing cell of ``float64`` is ``NaN``, of the others ``NA``."""

    unit: str
    """Unit of its numbers; empty for texts, ratios and scores in a metric's own unit."""

    source: str
    """Where its values come from."""


RUN = (
    Column("suite", "string", "", "run.suite"),
    Column("run", "string", "", "run.name"),
    Column("task", "string", "", "run.task"),
    Column("scenario", "string", "", "run.scenario"),
    Column("scenario_args", "string", "", "run.scenario_args"),
    Column("model", "string", "", "deployment.model"),
    Column("deployment", "string", "", "deployment.name"),
    Column("compression", "string", "", "deployment.compression"),
    Column("weight_bits", "Int64", "bits", "deployment.weight_bits"),
    Column("cache_bits", "Int64", "bits", "deployment.cache_bits"),
    Column("group_size", "Int64", "numbers", "deployment.group_size"),
    Column("attention_percent", "Int64", "%", "deployment.attention_percent"),
    Column("dtype", "string", "", "flexgen_run.engine.dtype | deployment.dtype"),
)
"""Which run a row belongs to; both tables begin with these."""

SCENARIO_METRICS = (
    *RUN,
    Column("metric", "string", "", "stats.name.name"),
    Column("split", "string", "", "stats.name.split"),
    Column("sub_split", "string", "", "stats.name.sub_split"),
    Column("perturbation", "string", "", "perturbation.label"),
    Column("computed_on", "string", "", "stats.name.perturbation.computed_on"),
    Column("mean", "float64", "", "stats.mean"),
    Column("stddev", "float64", "", "stats.stddev"),
    Column("count", "Int64", "trials", "stats.count"),
    Column("sum", "float64", "", "stats.sum"),
    Column("min", "float64", "", "stats.min"),
    Column("max", "float64", "", "stats.max"),
)
"""One row per run and statistic of HELM's ``stats.json``."""

EFFICIENCY = (
    *RUN,
    Column("requests", "Int64", "", "flexgen_run.requests | scenario_state.requests"),
    Column("prompt_tokens", "Int64", "tokens", "flexgen_run.prompt_tokens"),
    Column("computed_prompt_tokens", "float64", "tokens", "flexgen_run.computed_prompt_tokens"),
    Column("unique_ratio", "float64", "", "flexgen_run.unique_ratio"),
    Column(
        "generated_tokens",
        "Int64",
        "tokens",
        "flexgen_run.generated_tokens | scenario_state.generated_tokens",
    ),
    Column("effective_batch", "float64", "sequences", "flexgen_run.effective_batch"),
    Column("padding_rows", "float64", "rows", "flexgen_run.padding_rows"),
    Column("mean_decode_rows", "float64", "rows", "flexgen_run.mean_decode_rows"),
    Column("prefill_s", "float64", "s", "flexgen_run.prefill_s"),
    Column("decode_s", "float64", "s", "flexgen_run.decode_s"),
    Column("request_s", "float64", "s", "flexgen_run.request_s | scenario_state.request_s"),
    Column("disk_wait_s", "float64", "s", "flexgen_run.disk_wait_s"),
    Column("link_wait_s", "float64", "s", "flexgen_run.link_wait_s"),
    Column("throughput", "float64", "tokens/s", "flexgen_run.throughput"),
    Column("weight_bytes", "Int64", "bytes", "flexgen_run.engine.weight_bytes"),
    Column("linear_weight_bytes", "Int64", "bytes", "flexgen_run.engine.linear_weight_bytes"),
    Column("cache_bytes", "Int64", "bytes", "flexgen_run.cache_bytes"),
    Column("cached_tokens", "Int64", "tokens", "flexgen_run.cached_tokens"),
    Column("cache_bytes_per_token", "float64", "bytes/token", "flexgen_run.cache_bytes_per_token"),
    Column("peak_memory_bytes", "Int64", "bytes", "flexgen_run.peak_memory_bytes"),
    Column("prefill_peak_bytes", "Int64", "bytes", "flexgen_run.prefill_peak_bytes"),
    Column("peak_host_bytes", "Int64", "bytes", "flexgen_run.peak_host_bytes"),
    Column("peak_disk_bytes", "Int64", "bytes", "flexgen_run.peak_disk_bytes"),
    Column("policy", "string", "", "flexgen_run.policy"),
    Column("predicted_prefill_s", "float64", "s", "flexgen_run.predicted_prefill_s"),
    Column("predicted_decode_s", "float64", "s", "flexgen_run.predicted_decode_s"),
    Column("planned_memory_bytes", "Int64", "bytes", "flexgen_run.planned_memory_bytes"),
)
"""One row per run: what it cost. `unique_ratio` is computed over requested prompt tokens: what
several requests share is computed once. Rows are those of matrix products: `padding_rows` hold no
token, as those of sequences that have ended and are left in a CUDA graph, and `mean_decode_rows`
says how large the batches were in which tokens were generated. `request_s` is prefill and decode
together or, without a run record, the sum of HELM's request times, which overlap when HELM asked
from several threads; `disk_wait_s` and `link_wait_s` are the part of it in which computing stood
still for the disk, or for copies to a GPU. `peak_memory_bytes` is of the GPU, and the host's beside
it, or of the process where there is none; as far as it was reached by the end of prefill it is
`prefill_peak_bytes`. `policy` has sequences of a micro-batch x micro-batches,
and percent on device/host/disk. What was `predicted` and `planned` is there where the
machine has been calibrated, or a memory budget was given."""

COMPARISON = (
    Column("suite", "string", "", "run.suite"),
    Column("scenario", "string", "", "run.scenario"),
    Column("task", "string", "", "run.task"),
    Column("model", "string", "", "run.model"),
    Column("compression", "string", "", "run.compression"),
    Column("dtype", "string", "", "run.dtype"),
    Column("deployment", "string", "", "run.deployment"),
    Column("metric", "string", "", "score.metric"),
    Column("split", "string", "", "score.split"),
    Column("n", "Int64", "", "score.instances"),
    Column("score", "float64", "", "score.value"),
    Column("difference", "float64", "", "against_reference.difference"),
    Column("difference_low", "float64", "", "against_reference.interval.low"),
    Column("difference_high", "float64", "", "against_reference.interval.high"),
    Column("test", "string", "", "against_reference.test.name"),
    Column("p_value", "float64", "", "against_reference.test.p_value"),
    Column("p_adjusted", "float64", "", "against_reference.test.p_adjusted"),
    Column("answers", "Int64", "", "against_reference.answers"),
    Column("changed_answers", "Int64", "", "against_reference.changed"),
    Column("logprob_change", "float64", "nats/token", "against_reference.logprob_change"),
    Column("throughput", "float64", "tokens/s", "run.throughput"),
    Column("throughput_ratio", "float64", "", "against_reference.throughput_ratio"),
    Column("request_s", "float64", "s", "run.request_s"),
    Column("weight_bytes", "Int64", "bytes", "run.weight_bytes"),
    Column("cache_bytes_per_token", "float64", "bytes/token", "run.cache_bytes_per_token"),
    Column("peak_memory_bytes", "Int64", "bytes", "run.peak_memory_bytes"),
    Column("reference", "string", "", "against_reference.run"),
)
"""One row per run: its score and its answers beside those of its reference. Here ``run`` is a row
of `EFFICIENCY`. The interval of a difference has 95 % confidence (percentile bootstrap over
instances); `p_value` is that of `test`, and `p_adjusted` the same for all rows of the table taken
together (Holm). `answers` are those to what both were asked, and `changed_answers` those of another
text; `logprob_change` is over the tokens with which both answers begin, as what follows a token
that differs was given other text."""

MEASURED = frozenset({"throughput", "throughput_ratio", "request_s", "peak_memory_bytes"})
"""Columns that another run of the same would fill otherwise."""

OVERALL = (
    Column("suite", "string", "", "run.suite"),
    Column("model", "string", "", "run.model"),
    Column("compression", "string", "", "run.compression"),
    Column("dtype", "string", "", "run.dtype"),
    Column("tasks", "Int64", "", "score.tasks"),
    Column("n", "Int64", "", "score.instances"),
    Column("score", "float64", "", "score.value"),
    Column("difference", "float64", "", "against_reference.difference"),
    Column("difference_low", "float64", "", "against_reference.interval.low"),
    Column("difference_high", "float64", "", "against_reference.interval.high"),
    Column("answers", "Int64", "", "against_reference.answers"),
    Column("changed_answers", "Int64", "", "against_reference.changed"),
    Column("throughput", "float64", "tokens/s", "cost.throughput"),
    Column("throughput_ratio", "float64", "", "against_reference.throughput_ratio"),
    Column("request_s", "float64", "s", "cost.request_s"),
    Column("weight_bytes", "Int64", "bytes", "run.weight_bytes"),
    Column("cache_bytes_per_token", "float64", "bytes/token", "cost.cache_bytes_per_token"),
    Column("peak_memory_bytes", "Int64", "bytes", "cost.peak_memory_bytes"),
)
"""One row per setting: means over the tasks that all settings of its model have, each of equal
weight, and what these cost together; without tasks whose scores are no parts of 1, such as bits per
byte. The interval is a bootstrap within each task."""


UNQUANTIZED_BITS = 16
"""Where missing bits stand in the order of settings: before every quantized one."""


def resolve(source: str, sources: Sources) -> Any:
    """Value of the first alternative of `source` that is there, else `None`."""
    for path in _paths(source):
        value = _look_up(path, sources)
        if value is not None:
            return value
    return None


def frame_of(columns: Sequence[Column], rows: Iterable[Sources]) -> pd.DataFrame:
    """Frame with these columns and dtypes, also when there is no row."""
    import pandas as pd  # here, as every command of the command line knows its columns

    cells: dict[str, list[Any]] = {column.name: [] for column in columns}
    for sources in rows:
        for column in columns:
            cells[column.name].append(resolve(column.source, sources))
    return pd.DataFrame(
        {column.name: pd.Series(cells[column.name], dtype=column.dtype) for column in columns}
    )


@cache
def _paths(source: str) -> tuple[tuple[str, ...], ...]:
    """Keys of each alternative; cached, since a source is resolved once for every cell."""
    return tuple(tuple(path.strip().split(".")) for path in source.split("|"))


def _look_up(path: Sequence[str], value: Any) -> Any:
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value
