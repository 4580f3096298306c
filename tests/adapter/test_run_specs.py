from helm.benchmark.run_spec_factory import construct_run_specs
from helm.common.object_spec import parse_object_spec

from flexgen_helm import plugin  # noqa: F401 - helm-run imports it
from flexgen_helm.adapter.run_specs import ROUGE


def run_spec(entry):
    [spec] = construct_run_specs(parse_object_spec(f"{entry},model=flexgen/opt-125m"))
    return spec


def test_it_is_helms_entry_but_for_the_metrics():
    theirs = run_spec("summarization_xsum_sampled:temperature=0.3")
    ours = run_spec("summarization_xsum_rouge:temperature=0.3")
    assert ours.name == "summarization_xsum_rouge:model=flexgen_opt-125m"
    assert ours.scenario_spec == theirs.scenario_spec
    assert ours.adapter_spec == theirs.adapter_spec
    assert ours.groups == theirs.groups
    [generation, *_] = ours.metric_specs
    assert generation.args == {"names": list(ROUGE)}


def test_a_temperature_in_the_entry_counts():
    assert run_spec("summarization_xsum_rouge:temperature=0").adapter_spec.temperature == 0
