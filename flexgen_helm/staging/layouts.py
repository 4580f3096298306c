"""What HELM's scenarios read from disk: which files, and what must be in them."""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from flexgen_helm.errors import StagingError

Check = Callable[[Path], object]
"""Reads a file; raises where it is not what HELM reads."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Files of a scenario, below the directory that has its name."""

    url: str
    """Of the host that HELM downloads them from, or most of them."""

    files: Mapping[str, Check]
    """Glob patterns, each of which some file must match, and how a file is checked."""

    optional: Mapping[str, Check] = field(default_factory=dict)
    """Likewise, of what need not be there."""


def check_csv(path: Path) -> None:
    """MMLU's: question, choices, and the letter of the right one."""
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            letters = list("ABCDE")[: len(row) - 2]
            if len(row) < 4 or row[-1] not in letters:
                raise ValueError(f"line {number} is not a question, its choices and a letter")


def check_lines_of(*names: str) -> Check:
    """Return a check for files of JSON objects, one a line, that have these fields."""

    def check(path: Path) -> None:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                found = json.loads(line)
                if missing := [name for name in names if name not in found]:
                    raise ValueError(f"line {number} has no {', '.join(missing)}")

    return check


def check_json(path: Path) -> None:
    """Any JSON."""
    json.loads(path.read_text(encoding="utf-8"))


def check_text(path: Path) -> None:
    """Any text."""
    if not path.read_text(encoding="utf-8").strip():
        raise ValueError("it is empty")


def check_pickle(path: Path) -> None:
    """HELM's summarization: documents and summaries by split.

    HELM unpickles the file, which may execute whatever somebody has put into it. Here nothing is
    unpickled but dicts, lists and strings; what needs more is refused.
    """
    with path.open("rb") as file:
        found = _PlainUnpickler(file).load()
    for split in ("train", "validation", "test"):
        for example in found[split]:
            if not isinstance(example["document"], str) or not isinstance(example["summary"], str):
                raise TypeError(f"an example of {split} has no document and summary")


class _PlainUnpickler(pickle.Unpickler):
    """Reads built-in containers only."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise pickle.UnpicklingError(f"it wants to use {module_name}.{global_name}")


LAYOUTS: Mapping[str, Layout] = {
    "boolq": Layout(
        url="https://huggingface.co",
        files={
            "data/train": check_lines_of("question", "passage", "answer"),
            "data/dev": check_lines_of("question", "passage", "answer"),
            "data/boolq_perturbed.jsonl": check_json,
        },
    ),
    "gsm": Layout(
        url="https://raw.githubusercontent.com",
        files={
            "gsm_data_train": check_lines_of("question", "answer"),
            "gsm_data_test": check_lines_of("question", "answer"),
        },
    ),
    "imdb": Layout(
        url="https://ai.stanford.edu",
        files={
            "data/train/pos/*.txt": check_text,
            "data/train/neg/*.txt": check_text,
            "data/test/pos/*.txt": check_text,
            "data/test/neg/*.txt": check_text,
            "data/*_original.tsv": check_text,
            "data/*_contrast.tsv": check_text,
            "data/imdb_scenario_pinned_file_order.json": check_json,
        },
    ),
    "mmlu": Layout(
        url="https://people.eecs.berkeley.edu",
        files={"data/dev/*.csv": check_csv, "data/test/*.csv": check_csv},
        optional={"data/val/*.csv": check_csv, "data/auxiliary_train/*.csv": check_csv},
    ),
    "summarization": Layout(
        url="https://storage.googleapis.com", files={"data/*.pk": check_pickle}
    ),
    "wikifact": Layout(
        url="https://worksheets.codalab.org",
        files={
            f"data/{split}.jsonl": check_lines_of("property", "template", "result_names")
            for split in ("train", "dev", "test")
        },
    ),
    "wikitext_103": Layout(
        url="https://s3.amazonaws.com", files={"data/wiki.test.raw": check_text}
    ),
}
"""By HELM's name of the scenario."""

NEED_NOTHING = frozenset({"dyck_language", "synthetic_reasoning", "synthetic_reasoning_natural"})
"""Scenarios that make up their instances."""

_SUMMARIZATION = {
    "xsum": "xsum",
    "summarization_xsum": "xsum",
    "summarization_xsum_sampled": "xsum-sampled",
    "summarization_xsum_rouge": "xsum-sampled",
}
"""Run entries of the scenario, and what people call it, with the names of their texts."""


def scenario_of_entry(entry: str) -> str:
    """Return HELM's name of the scenario of a run entry such as ``mmlu:subject=anatomy``."""
    name = entry.partition(":")[0]
    return "summarization" if name in _SUMMARIZATION else name


def files_of_entry(entry: str) -> list[str]:
    """Return the files that a run entry needs beside those of every entry of its scenario."""
    name, _, arguments = entry.partition(":")
    if name in _SUMMARIZATION:
        return [f"data/{_SUMMARIZATION[name]}.pk"]
    subject = dict(part.partition("=")[::2] for part in arguments.split(",")).get("subject")
    if name == "mmlu" and subject:
        return [f"data/{split}/{subject}_{split}.csv" for split in ("dev", "test")]
    return []


def layout_of(scenario: str) -> Layout:
    """Return the layout of a scenario.

    Raises:
        StagingError: it is not known.
    """
    if scenario not in LAYOUTS:
        raise StagingError(
            f"where scenario {scenario!r} looks for its data is not known, only that of"
            f" {', '.join(LAYOUTS)}: put them yourself where HELM would download them to"
        )
    return LAYOUTS[scenario]


def check_files(directory: Path, layout: Layout, needed: Sequence[str] = ()) -> list[Path]:
    """Return the files of a scenario below a directory, relative to it, after reading them.

    Args:
        directory: where they are.
        layout: of the scenario.
        needed: files that must be there beside those of the layout.

    Raises:
        StagingError: one is missing, or not what HELM reads.
    """
    found: list[Path] = []
    for pattern, check in {**layout.files, **layout.optional}.items():
        for path in sorted(path for path in directory.glob(pattern) if path.is_file()):
            _check(path, check)
            found.append(path.relative_to(directory))
    if missing := missing_files(directory, layout, needed):
        raise StagingError(
            f"{directory} has no {', '.join(missing)}: it must be laid out as HELM lays out its"
            " downloads"
        )
    return found


def missing_files(directory: Path, layout: Layout, needed: Sequence[str] = ()) -> list[str]:
    """Return what is not below a directory; of files of a missing pattern, the pattern alone."""
    patterns = [
        pattern
        for pattern in layout.files
        if not any(path.is_file() for path in directory.glob(pattern))
    ]
    files = [file for file in needed if not (directory / file).is_file()]
    return [*(file for file in files if not any(fnmatch(file, p) for p in patterns)), *patterns]


_DAMAGED = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OSError),
    *(csv.Error, pickle.UnpicklingError),
)
"""What reading a file raises that is not what it should be."""


def _check(path: Path, check: Check) -> None:
    try:
        check(path)
    except _DAMAGED as error:
        raise StagingError(
            f"{path} is not what HELM reads ({error}): get it anew, it is left where it is"
        ) from error
