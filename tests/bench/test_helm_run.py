import json
import shutil
import sys

import pytest

from flexgen_helm.bench.clients import OURS, THEIRS
from flexgen_helm.bench.helm_run import execution_seconds, wall_seconds
from flexgen_helm.bench.scores import compare_runs
from flexgen_helm.errors import CommandError


def test_rows_tell_what_was_run(timed_pair):
    theirs, ours = (timed.row for timed in timed_pair)
    assert (theirs.client, ours.client) == (THEIRS, OURS)
    for row in (theirs, ours):
        assert (row.suite, row.stage, row.dtype) == ("summarization", "timed", "float32")
        assert (row.instances, row.train_trials, row.requests) == (2, 1, 2)
        assert row.generated_tokens == 2 * 64, "completions run to their full length"
        assert 0 < row.execution_s < row.wall_s


def test_scores_of_both_clients_are_equal(timed_pair):
    scores = compare_runs(*timed_pair)
    assert scores.prompts_equal
    assert scores.differing_completions == 0
    assert scores.scores_equal
    assert scores.largest_difference <= 1e-6
    assert (scores.metric, scores.requests) == ("rouge_2", 2)
    assert scores.statistics > 20


def test_different_results_are_told(timed_pair, tmp_path):
    theirs, ours = timed_pair
    changed = ours._replace(results=tmp_path / "suite")
    shutil.copytree(ours.results, changed.results)

    def change(name, edit):
        [path] = changed.results.glob(f"*/{name}")
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))

    def other_completion(content):
        content["request_states"][1]["result"]["completions"][0]["text"] += "!"

    def better_score(content):
        [stat] = [s for s in content if s["name"] == {"name": "rouge_2", "split": "test"}]
        stat["mean"] += 0.25
        stat["sum"] += 0.25 * stat["count"]

    change("scenario_state.json", other_completion)
    change("stats.json", better_score)
    scores = compare_runs(theirs, changed)
    assert scores.prompts_equal
    assert scores.differing_completions == 1
    assert not scores.scores_equal
    assert scores.largest_difference == pytest.approx(0.25)
    assert scores.largest_difference_of == "rouge_2"
    assert scores.our_score - scores.their_score == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("raise SystemExit(3)", "helm-run ended with status 3: the reason is at the end of .*log"),
        ("print('quiet')", "has no block .* leave HELM's log level .* at INFO"),
    ],
)
def test_a_run_that_fails_or_tells_no_time(tmp_path, program, message):
    log = tmp_path / "logs" / "run.log"

    def run():
        wall_seconds([sys.executable, "-c", program], log=log, nltk_data=tmp_path)
        execution_seconds(log)

    with pytest.raises(CommandError, match=message):
        run()
