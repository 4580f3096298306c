import json

import pytest

from flexgen_helm.errors import TablesError
from flexgen_helm.tables.instances import Answer, changes, read_answers, read_scores


@pytest.fixture
def scored(make_run, make_scores):
    instances = [
        *make_scores("exact_match", {"id1": [1, 0], "id2": [0, 0]}),
        *make_scores("f1_score", {"id1": [0.5, 0.5]}),
        *make_scores("exact_match", {"id1": [0, 0]}, perturbation={"name": "typos"}),
        *make_scores("exact_match", {"id3": [1]}, split="valid"),
    ]
    return make_run(instances=instances)


def test_scores_by_instance_and_trial(scored):
    scores = read_scores(scored, metric="exact_match", split="test")
    assert scores == {"id1": [1, 0], "id2": [0, 0]}


def test_no_scores_of_a_metric_over_the_whole_run(scored):
    assert read_scores(scored, metric="bits_per_byte", split="test") == {}


def answer(text, *tokens):
    return Answer(text, tokens)


def test_changed_answers_and_what_both_begin_with():
    before = {
        1: answer("a b c", ("a", -1.0), ("b", -2.0), ("c", -3.0)),
        2: answer("a", ("a", -0.5)),
        3: answer("x", ("x", -1.0)),
        4: answer("only before"),
    }
    after = {
        1: answer("a b d", ("a", -1.5), ("b", -2.5), ("d", -9.0)),
        2: answer("a", ("a", -0.5)),
        3: answer("y", ("y", -1.0)),
        5: answer("only after"),
    }
    found = changes(before, after)
    assert (found.answers, found.changed) == (3, 2)
    assert found.logprob_change == pytest.approx(-1 / 3)  # of three tokens, two fell by a half


def test_answers_without_a_token_in_common_tell_nothing_of_log_probabilities():
    found = changes({1: answer("a", ("a", 0.0))}, {1: answer("b", ("b", 0.0))})
    assert found == (1, 1, None)


def test_answers_are_told_apart_by_prompt_trial_and_instance(make_run, make_answer):
    states = [
        make_answer("id1", "yes", trial=0),
        make_answer("id1", "no", trial=1),
        make_answer("id2", "yes", trial=0),
    ]
    found = read_answers(make_run(states=states))
    assert [each.text for each in found.values()] == ["yes", "no", "yes"]
    assert len(found) == 3


def test_answers_of_a_split_are_to_instances_as_they_are(make_run, make_answer):
    states = [
        make_answer("id1", "yes"),
        make_answer("id2", "yes", split="valid"),
        make_answer("id3", "yes", perturbation={"name": "typos"}),
    ]
    run = make_run(states=states)
    assert len(read_answers(run)) == 3
    assert len(read_answers(run, split="test")) == 1


def test_a_request_that_failed_has_no_answer(make_run, make_answer):
    failed = make_answer("id1", "yes")
    failed["result"]["completions"] = []
    assert read_answers(make_run(states=[failed])) == {}


def test_a_damaged_file_is_named(make_run):
    run = make_run()
    (run / "per_instance_stats.json").write_text(json.dumps([{"stats": []}, 3]))
    with pytest.raises(TablesError, match=r"per_instance_stats.json is damaged"):
        read_scores(run, metric="m", split="test")
