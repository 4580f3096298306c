import json

import pytest

from flexgen_helm.bench import helm
from flexgen_helm.bench.clients import OURS
from flexgen_helm.bench.suites import TOKENIZER
from flexgen_helm.cli.bench.options import DATA
from flexgen_helm.cli.main import build_parser, main
from tests.conftest import SHARED_DATA


@pytest.fixture
def helm_runs(timed_pair, monkeypatch, tmp_path):
    """Let runs end at once, with the results of real ones, and record what was asked for."""
    asked = []

    def end_at_once(run, site):
        asked.append(run)
        return timed_pair[run.client.name == OURS]

    monkeypatch.setattr(helm, "timed_run", end_at_once)
    return asked


def bench_helm(directory, *arguments):
    places = ("--data", str(SHARED_DATA), "--work-dir", str(directory), "--shape", "tiny")
    return main(["bench", "helm", *places, "--suites", "summarization", *arguments])


def test_json_is_all_there_is_on_stdout(helm_runs, tmp_path, capsys):
    assert bench_helm(tmp_path, "--json", "-m", "2", "--peers", "float32-1") == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert {*report} == {"ratios", "conditions", "rows"}
    assert {*report["ratios"]} == {"summarization_wall_time", "summarization_execution_time"}
    assert report["conditions"]["checkpoint"].startswith("random-tiny-")
    assert report["rows"][-1]["scores_equal"]
    assert captured.err.count("of it execution") == len(helm_runs) == 5


def test_a_table_otherwise(helm_runs, tmp_path, capsys):
    bench_helm(tmp_path, "-m", "2", "--score-instances", "0", "--peers", "float32-1")
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("cpu: ") for line in lines)
    assert any(line.split()[:3] == ["suite", "stage", "client"] for line in lines)
    assert lines[-1].startswith("summarization_execution_time: ")


def test_small_runs_have_small_pilots_and_comparisons(helm_runs, tmp_path):
    bench_helm(tmp_path, "-m", "2", "--peers", "float32-1", "bfloat16-1")
    assert {run.size.instances for run in helm_runs} == {2}


def test_missing_data_is_an_error_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "helm"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"flexgen-helm: {DATA} has no {TOKENIZER}/ (needed by every")
    assert "summarization/ (needed by suite summarization)" in message
    assert "--data" in message
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["-m", "0"], "0 is not a number from 1 on"),
        (["--score-instances", "-1"], "-1 is not a number from 0 on"),
        (["--suites", "natural", "imdb"], "invalid choice: 'imdb'"),
    ],
)
def test_arguments_are_checked(option, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "helm", *option])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--device", "abacus"], "device='abacus' is not here: use 'auto', "),
        (["--compressions", "w4", "w5"], "weight_bits=5 is not supported"),
    ],
)
def test_settings_of_a_gpu_benchmark_are_checked_before_it_begins(option, message, capsys):
    assert main(["bench", "gpu", "--device", "cpu", "--peers", "--hardware", "t4", *option]) == 2
    assert message in capsys.readouterr().err


def test_a_gpu_benchmark_has_a_part_of_the_requests(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "gpu", "--helm-share", "-1"])
    assert "'-1' is not a part such as 0.5, above 0 and up to 1" in capsys.readouterr().err


def test_the_default_is_the_full_comparison():
    args = build_parser().parse_args(["bench", "helm"])
    assert (args.shape, args.max_eval_instances, args.num_train_trials) == ("opt-125m", 100, 3)
    assert args.suites == ["natural", "mmlu", "summarization"]
