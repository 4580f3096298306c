import json
import pickle

import pytest
from helm.benchmark.scenarios.boolq_scenario import BoolQScenario
from helm.benchmark.scenarios.gsm_scenario import GSM8KScenario
from helm.benchmark.scenarios.imdb_scenario import IMDBScenario
from helm.benchmark.scenarios.mmlu_scenario import MMLUScenario
from helm.benchmark.scenarios.summarization_scenario import SummarizationScenario
from helm.benchmark.scenarios.wikifact_scenario import WIKIFactScenario
from helm.benchmark.scenarios.wikitext_103_scenario import Wikitext103Scenario

from flexgen_helm.cli.main import main
from flexgen_helm.errors import StagingError
from flexgen_helm.staging.stage import stage

ROWS = {
    "cais/mmlu": [
        {"question": 'Which, "so to say"?', "choices": ["p", "q", "r", "s"], "answer": 2,
         "subject": "anatomy"}
    ],
    "openai/gsm8k": [{"question": "1 + 1?", "answer": "1 + 1 is 2\n#### 2"}],
    "google/boolq": [{"question": "is it so", "passage": "It is so.", "answer": True}],
    "EdinburghNLP/xsum": [{"document": "A b. " * 40, "summary": "A b.", "id": "1"}],
    "stanfordnlp/imdb": [{"text": "Good.", "label": 1}, {"text": "Bad.", "label": 0}],
    "letters": [{"question": "?", "choices": ["p"] * 4, "answer": "A", "subject": "anatomy"}],
    "facts": [{"property": "P31", "template": "Rex is a", "result_names": [["dog"]]}],
}  # fmt: skip


def load(name, config, split):
    return ROWS[name]


@pytest.mark.parametrize(
    ("name", "source", "scenario", "references"),
    [
        ("mmlu", "hub", MMLUScenario("anatomy"), {"r"}),
        ("gsm", "hub", GSM8KScenario(), {"1 + 1 is 2 The answer is 2."}),
        ("boolq", "hub", BoolQScenario(), {"Yes"}),
        ("imdb", "hub", IMDBScenario(), {"Positive", "Negative"}),
        ("summarization", "hub", SummarizationScenario("xsum-sampled"), {"A b."}),
        ("wikifact", "facts", WIKIFactScenario("instance_of"), {"dog"}),
    ],
)
def test_helm_reads_what_was_staged_from_a_data_set(tmp_path, name, source, scenario, references):
    staged = stage(name, source, tmp_path, load=load)
    assert staged.files
    instances = scenario.get_instances(str(tmp_path / name))
    assert {i.first_correct_reference.output.text for i in instances} == references


# HELM leaves the file to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_helm_finds_the_articles_of_wikitext(tmp_path):
    """On the hub a line of a space is an empty row."""
    lines = ["", " = Title = \n", "", " Text . \n"]
    rows = [{"text": line} for _ in range(60) for line in lines]
    stage("wikitext_103", "hub", tmp_path, load=lambda *_: rows)
    scenario = Wikitext103Scenario()
    assert len(scenario.get_instances(str(tmp_path / "wikitext_103"))) == 60


def test_what_differs_from_helms_own_is_said(tmp_path):
    assert "sample of our own" in stage("summarization", "hub", tmp_path, load=load).note


@pytest.fixture
def facts(tmp_path):
    """A directory laid out as HELM's downloads."""
    directory = tmp_path / "data" / "wikifact" / "data"
    directory.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        (directory / f"{split}.jsonl").write_text(json.dumps(ROWS["facts"][0]) + "\n")
    return tmp_path / "data"


@pytest.mark.parametrize("below", ["", "wikifact"])
def test_from_a_directory_with_or_without_the_scenarios_name(facts, tmp_path, below):
    stage("wikifact", str(facts / below), tmp_path / "scenarios")
    copied = tmp_path / "scenarios" / "wikifact" / "data" / "test.jsonl"
    assert copied.read_bytes() == (facts / "wikifact" / "data" / "test.jsonl").read_bytes()


def test_what_is_there_stays(facts, tmp_path):
    kept = tmp_path / "scenarios" / "wikifact" / "data" / "dev.jsonl"
    kept.parent.mkdir(parents=True)
    kept.write_text(json.dumps({**ROWS["facts"][0], "mine": 1}) + "\n")
    stage("wikifact", str(facts), tmp_path / "scenarios")
    assert "mine" in kept.read_text()


def test_nothing_is_copied_from_a_directory_that_lacks_a_file(facts, tmp_path):
    (facts / "wikifact" / "data" / "test.jsonl").unlink()
    with pytest.raises(StagingError, match=r"has no data/test.jsonl"):
        stage("wikifact", str(facts), tmp_path / "scenarios")
    assert not (tmp_path / "scenarios").exists()


def test_a_directory_that_datasets_reads(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(ROWS["openai/gsm8k"][0]) + "\n")
    stage("gsm", str(tmp_path), tmp_path / "scenarios")
    assert GSM8KScenario().get_instances(str(tmp_path / "scenarios" / "gsm"))


def test_a_data_set_that_cannot_be_loaded(tmp_path):
    with pytest.raises(StagingError, match=r"split 'train' of data set .* cannot be loaded"):
        stage("gsm", str(tmp_path / "nowhere"), tmp_path / "scenarios")


def test_a_data_set_of_other_columns(tmp_path):
    with pytest.raises(StagingError, match=r"nor is it a data set to make them of: no column 'que"):
        stage("gsm", "facts", tmp_path, load=load)
    assert not list(tmp_path.iterdir())


def test_a_data_set_of_other_values(tmp_path):
    with pytest.raises(
        StagingError, match=r"nor is it a data set to make them of: invalid literal"
    ):
        stage("mmlu", "letters", tmp_path, load=load)


def test_what_an_entry_needs_must_be_there(tmp_path):
    assert stage("mmlu", "hub", tmp_path / "one", load=load, needed=["data/test/anatomy_test.csv"])
    with pytest.raises(StagingError, match=r"has no data/test/virology_test.csv"):
        stage("mmlu", "hub", tmp_path / "two", load=load, needed=["data/test/virology_test.csv"])


def test_no_copy_on_the_hub_is_known(tmp_path):
    with pytest.raises(StagingError, match=r"no copy of wikifact on the hub is known"):
        stage("wikifact", "hub", tmp_path, load=load)


def test_pickles_hold_nothing_but_texts(tmp_path):
    stage("summarization", "hub", tmp_path, load=load)
    found = pickle.loads((tmp_path / "summarization" / "data" / "xsum.pk").read_bytes())
    assert found["test"] == [{"document": "A b. " * 40, "summary": "A b."}]


def test_the_command_stages_all_scenarios_of_a_file(facts, tmp_path, capsys):
    conf = tmp_path / "some.conf"
    conf.write_text(
        "entries: [\n"
        '  {description: "wikifact:k=5,subject=plaintiff", priority: 1}\n'
        '  {description: "wikifact:k=5,subject=instance_of", priority: 1}\n'
        '  {description: "dyck_language:num_parenthesis_pairs=2", priority: 1}\n'
        "]\n"
    )
    out = tmp_path / "out"
    assert main(["stage", str(conf), "--from", str(facts), "-o", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "wikifact: 3 files checked",
        "dyck_language: needs no data",
    ]
    assert main(["stage", "mmlu", "wikifact", "--from", str(facts), "-o", str(out)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "wikifact: 3 files checked\n"
    assert f"mmlu: {facts} has neither HELM's files (data/dev/*.csv" in captured.err


def test_a_conf_that_is_not_there(tmp_path, capsys):
    assert main(["stage", "nowhere.conf", "--from", str(tmp_path)]) == 2
    assert "nowhere.conf is not there" in capsys.readouterr().err
