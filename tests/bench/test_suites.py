import pytest

from flexgen_helm.bench.suites import NLTK_DATA, SUITES, TOKENIZER, require_data, stage_data
from flexgen_helm.errors import BenchmarkError


@pytest.fixture
def data(tmp_path):
    for name in (TOKENIZER, NLTK_DATA, "mmlu"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for split in ("dev", "test"):
        file = tmp_path / "data" / "mmlu" / "data" / split / f"anatomy_{split}.csv"
        file.parent.mkdir(parents=True)
        file.write_text("question,a,b,c,d,B\n")
    return tmp_path / "data"


def test_missing_data_is_named_with_who_needs_it(data):
    message = r"has no summarization/ \(needed by suite summarization\): .* --data, .* --suites"
    with pytest.raises(BenchmarkError, match=message):
        require_data(data, [SUITES["natural"], SUITES["summarization"]])
    with pytest.raises(BenchmarkError, match=r"opt-tokenizer/ \(needed by every suite\), nltk_"):
        require_data(data / "nowhere", [SUITES["natural"]])


def test_data_of_suites_not_asked_for_may_be_missing(data):
    require_data(data, [SUITES["natural"], SUITES["mmlu"]])


def test_data_is_copied_where_helm_looks_for_it(data, tmp_path):
    output = tmp_path / "output"
    (data / "mmlu" / "data" / "dev" / "anatomy_dev.csv").chmod(0o400)
    for suite in (SUITES["natural"], SUITES["mmlu"], SUITES["mmlu"]):
        stage_data(suite, data=data, output=output)
    assert [path.name for path in (output / "scenarios").iterdir()] == ["mmlu"]
    copied = output / "scenarios" / "mmlu" / "data" / "dev" / "anatomy_dev.csv"
    copied.write_text("HELM may write here")
