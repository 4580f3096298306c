import pytest

from flexgen_helm.errors import WorkloadError
from flexgen_helm.specs.shipped import scenarios_dir
from flexgen_helm.specs.workload import Workload
from tests.planner.machines import lengths, workload


def test_derived_numbers():
    some = lengths(prompt_len=200.0, unique_ratio=0.25, max_prompt_len=300)
    assert (some.prompt_tokens, some.own_len, some.shared_len) == (20_000, 50, 150)
    assert some.decodes
    assert not lengths(new_tokens=1).decodes
    both = workload(some, lengths(new_tokens=1, scored_part=0.5, least_filled=0.9))
    assert both.generated_tokens == 100 * 11 + 100
    assert both.longest == 311
    assert both.most_rows == 2 * (20_000 + 100)
    assert both.head_rows == 2 * 100 + 10_000
    assert both.cached_tokens == 100 * (50 + 11) / 0.8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_requests": 0}, "num_requests=0 of 'some'"),
        ({"prompt_len": float("nan")}, "prompt_len=nan"),
        ({"max_prompt_len": 100}, "max_prompt_len=100 .* at least 200"),
        ({"new_tokens": -1}, "new_tokens=-1"),
        ({"unique_ratio": 0.0}, "unique_ratio=0.0"),
        ({"scored_part": 1.5}, "scored_part=1.5"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    with pytest.raises(WorkloadError, match=message):
        lengths(**changes)


def test_nothing_to_do_is_refused():
    with pytest.raises(WorkloadError, match="'none' has no requests"):
        Workload(name="none", scenarios=())


def test_it_reads_back():
    work = workload(lengths(), lengths(name="other", unique_ratio=0.5))
    assert Workload.from_json(work.to_json(), where="here") == work


@pytest.mark.parametrize("text", ["", "{}", '{"name": "x", "scenarios": [{"length": 1}]}'])
def test_damaged_files_are_named(text):
    with pytest.raises(WorkloadError, match="there does not say how long requests are"):
        Workload.from_json(text, where="there")


def test_suites_that_ship_with_lengths():
    for conf in scenarios_dir().glob("*.conf"):
        path = conf.with_suffix(".lengths.json")
        if path.is_file():
            work = Workload.from_json(path.read_text(), where=str(path))
            text = conf.read_text()
            assert all(f'"{scenario.name}' in text for scenario in work)
