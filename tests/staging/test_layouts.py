import json
import pickle
from pathlib import Path

import pytest

from flexgen_helm.errors import StagingError
from flexgen_helm.staging.layouts import (
    LAYOUTS,
    check_files,
    files_of_entry,
    layout_of,
    missing_files,
    scenario_of_entry,
)

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

FACT = {"property": "P31", "template": "Rex is an instance of", "result_names": [["dog"]]}


@pytest.fixture
def wikifact(tmp_path):
    directory = tmp_path / "wikifact"
    (directory / "data").mkdir(parents=True)
    for split in ("train", "dev", "test"):
        (directory / "data" / f"{split}.jsonl").write_text(json.dumps(FACT) + "\n")
    return directory


def test_files_that_are_there(wikifact):
    found = check_files(wikifact, LAYOUTS["wikifact"])
    assert [str(path) for path in found] == [
        f"data/{split}.jsonl" for split in ("train", "dev", "test")
    ]


def test_a_missing_file_is_named(wikifact):
    (wikifact / "data" / "dev.jsonl").unlink()
    with pytest.raises(StagingError, match=r"has no data/dev.jsonl: it must be laid out"):
        check_files(wikifact, LAYOUTS["wikifact"])


def test_a_file_of_something_else_is_named(wikifact):
    (wikifact / "data" / "dev.jsonl").write_text('{"property": "P31"}\n')
    with pytest.raises(StagingError, match=r"dev.jsonl .*line 1 has no template, result_names"):
        check_files(wikifact, LAYOUTS["wikifact"])


@pytest.mark.parametrize(
    "row",
    ["question,a,b,c,d,E", "question,a,b,c,d", "question,a,b,c,d,AB", "question,a,b,c,d,", "A"],
)
def test_questions_without_a_right_answer(tmp_path, row):
    for split in ("dev", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
        (tmp_path / "data" / split / f"x_{split}.csv").write_text(f"question,a,b,c,d,B\n{row}\n")
    with pytest.raises(StagingError, match=r"line 2 is not a question, its choices and a letter"):
        check_files(tmp_path, LAYOUTS["mmlu"])


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("evil"),)


def test_nothing_is_executed_that_is_pickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "xsum.pk").write_bytes(pickle.dumps({"train": [Evil()]}))
    with pytest.raises(StagingError, match=r"xsum.pk .*it wants to use pathlib"):
        check_files(tmp_path, LAYOUTS["summarization"])
    assert not Path("evil").exists()


def test_an_unknown_scenario():
    with pytest.raises(StagingError, match=r"'bbq' looks for its data is not known, only .*mmlu"):
        layout_of("bbq")


@pytest.mark.parametrize(
    ("entry", "scenario"),
    [
        ("mmlu:subject=anatomy", "mmlu"),
        ("xsum", "summarization"),
        ("summarization_xsum_rouge", "summarization"),
        ("summarization_xsum_sampled:temperature=0.3", "summarization"),
    ],
)
def test_scenarios_of_entries(entry, scenario):
    assert scenario_of_entry(entry) == scenario


@pytest.mark.parametrize(
    ("entry", "files"),
    [
        (
            "mmlu:subject=anatomy,num_train_trials=3",
            ["data/dev/anatomy_dev.csv", "data/test/anatomy_test.csv"],
        ),
        ("mmlu", []),
        ("summarization_xsum_rouge:max_eval_instances=2", ["data/xsum-sampled.pk"]),
        ("wikifact:k=5,subject=plaintiff", []),
    ],
)
def test_files_of_entries(entry, files):
    assert files_of_entry(entry) == files


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"nonsense"])
def test_a_damaged_pickle_is_named(tmp_path, content):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "xsum.pk").write_bytes(content)
    with pytest.raises(StagingError, match=r"xsum.pk is not what HELM reads"):
        check_files(tmp_path, LAYOUTS["summarization"])


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no real scenario data are here")
@pytest.mark.parametrize("scenario", ["mmlu", "wikifact", "summarization", "wikitext_103"])
def test_real_data(scenario):
    assert check_files(SHARED_DATA / scenario, LAYOUTS[scenario])


def test_a_file_of_a_pattern_that_is_missing_is_not_named_beside_it(tmp_path):
    needed = files_of_entry("mmlu:subject=anatomy")
    assert missing_files(tmp_path, LAYOUTS["mmlu"], needed) == ["data/dev/*.csv", "data/test/*.csv"]
    (tmp_path / "data" / "dev").mkdir(parents=True)
    (tmp_path / "data" / "dev" / "virology_dev.csv").touch()
    assert missing_files(tmp_path, LAYOUTS["mmlu"], needed) == [
        "data/dev/anatomy_dev.csv",
        "data/test/*.csv",
    ]
