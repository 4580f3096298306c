"""Data sets of the Hugging Face hub, written as the files that HELM's scenarios read.

HELM's own hosts are often out of reach; these are copies of the same data sets by others. Names and
columns are those of the data sets' cards.
"""

from __future__ import annotations

import csv
import io
import json
import pickle
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flexgen_helm.errors import StagingError

Row = Mapping[str, Any]

Rows = Callable[[str], Iterable[Row]]
"""Rows of a split, by its name in the data set."""

Files = Iterator[tuple[str, bytes]]
"""Paths below the scenario's directory, and what is in them."""

SAMPLED = {"train": 1000, "validation": 200, "test": 1000}
"""Documents of each split in our sample of XSum."""


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """Where a scenario's data are, and how they become HELM's files."""

    name: str
    """Of the data set on the hub."""

    config: str | None = None
    """Its configuration."""

    files: Callable[[Rows], Files]

    note: str = ""
    """What is not as HELM has it."""


def load_rows(name: str, config: str | None, split: str) -> Iterable[Row]:
    """Load a split of a data set: of the hub, or of a directory that `datasets` reads.

    Raises:
        StagingError: there is no such data set or split, or the hub cannot be reached.
    """
    import datasets  # a second's import, and only wanted here

    try:
        rows: Iterable[Row] = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # of a dozen kinds, some of them of other packages
        raise StagingError(
            f"split {split!r} of data set {name!r} cannot be loaded ({error}): check the network"
            " (HF_ENDPOINT names a mirror), or give --from a directory"
        ) from error
    return rows


def _mmlu(rows: Rows) -> Files:
    for split, ours in (("dev", "dev"), ("validation", "val"), ("test", "test")):
        by_subject: dict[str, list[Row]] = {}
        for row in rows(split):
            by_subject.setdefault(row["subject"], []).append(row)
        for subject, questions in by_subject.items():
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            for row in questions:
                writer.writerow([row["question"], *row["choices"], "ABCD"[int(row["answer"])]])
            yield f"data/{ours}/{subject}_{ours}.csv", text.getvalue().encode()


def _gsm(rows: Rows) -> Files:
    for split in ("train", "test"):
        yield f"gsm_data_{split}", _json_lines(rows(split), ("question", "answer"))


def _boolq(rows: Rows) -> Files:
    for split, ours in (("train", "train"), ("validation", "dev")):
        yield f"data/{ours}", _json_lines(rows(split), ("question", "passage", "answer"))
    # HELM skips the first entry, a header, and finds no contrast set.
    yield "data/boolq_perturbed.jsonl", json.dumps({"data": [{}]}).encode()


def _imdb(rows: Rows) -> Files:
    order: dict[str, dict[str, list[str]]] = {}
    for split, helms in (("train", "train"), ("test", "valid")):
        by_class: dict[str, list[str]] = {"pos": [], "neg": []}
        for index, row in enumerate(rows(split)):
            name = f"{index}.txt"
            folder = "pos" if row["label"] == 1 else "neg"
            by_class[folder].append(name)
            yield f"data/{split}/{folder}/{name}", row["text"].encode()
        order[helms] = by_class
    yield "data/imdb_scenario_pinned_file_order.json", json.dumps(order).encode()
    for part in ("dev", "test"):  # headers of contrast sets without any
        for kind in ("original", "contrast"):
            yield f"data/{part}_{kind}.tsv", b"Sentiment\tText\n"


def _wikifact(rows: Rows) -> Files:
    for split, ours in (("train", "train"), ("validation", "dev"), ("test", "test")):
        names = ("property", "template", "result_names")
        yield f"data/{ours}.jsonl", _json_lines(rows(split), names)


def _wikitext(rows: Rows) -> Files:
    # The hub has empty rows where the file has lines with a space, by which HELM tells articles.
    yield "data/wiki.test.raw", "".join(row["text"] or " \n" for row in rows("test")).encode()


def _xsum(rows: Rows) -> Files:
    splits = {
        split: [{name: str(row[name]) for name in ("document", "summary")} for row in rows(split)]
        for split in SAMPLED
    }
    yield "data/xsum.pk", pickle.dumps(splits)
    drawn = random.Random(0)
    sampled = {
        split: drawn.sample(examples, min(SAMPLED[split], len(examples)))
        for split, examples in splits.items()
    }
    yield "data/xsum-sampled.pk", pickle.dumps(sampled)


def _json_lines(rows: Iterable[Row], names: tuple[str, ...]) -> bytes:
    lines = (json.dumps({name: row[name] for name in names}, ensure_ascii=False) for row in rows)
    return "".join(f"{line}\n" for line in lines).encode()


SOURCES: Mapping[str, DataSource] = {
    "boolq": DataSource(
        name="google/boolq",
        files=_boolq,
        note="without contrast sets, which only HELM's perturbation of that name uses",
    ),
    "gsm": DataSource(name="openai/gsm8k", config="main", files=_gsm),
    "imdb": DataSource(
        name="stanfordnlp/imdb",
        config="plain_text",
        files=_imdb,
        note="in another order than HELM's, so other examples are drawn, and without contrast sets",
    ),
    "mmlu": DataSource(name="cais/mmlu", config="all", files=_mmlu),
    "summarization": DataSource(
        name="EdinburghNLP/xsum",
        files=_xsum,
        note="xsum-sampled is a sample of our own, so its scores are not HELM's",
    ),
    "wikifact": DataSource(name="", files=_wikifact),
    "wikitext_103": DataSource(
        name="Salesforce/wikitext", config="wikitext-103-raw-v1", files=_wikitext
    ),
}
"""By HELM's name of the scenario; a data set without a name has to be given one."""


def source_of(scenario: str) -> DataSource:
    """Return the source of a scenario.

    Raises:
        StagingError: none is known.
    """
    if scenario not in SOURCES:
        raise StagingError(
            f"scenario {scenario!r} cannot be staged from the hub, only {', '.join(SOURCES)}: give"
            " --from a directory laid out as HELM lays out its downloads"
        )
    return SOURCES[scenario]
