"""The plugin as HELM finds it: through the entry point of the installed package."""

import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from helm.benchmark import model_deployment_registry as deployments
from helm.benchmark import model_metadata_registry as metadata
from helm.benchmark import tokenizer_config_registry as tokenizers
from helm.benchmark.run_expander import ModelRunExpander
from helm.benchmark.run_spec_factory import construct_run_specs
from helm.common.object_spec import get_class_by_name, parse_object_spec

from flexgen_helm import plugin
from flexgen_helm.errors import CheckpointError, DeploymentError, InvalidCompressionError
from flexgen_helm.specs.catalog import COMPRESSION_SETTINGS, KNOWN_MODELS, describe, find_known
from flexgen_helm.specs.compression import Compression


def test_the_entry_point_is_installed():
    [entry_point] = [e for e in entry_points(group="helm") if e.name == "flexgen_helm"]
    assert entry_point.load() is plugin


def test_helm_loads_it_without_a_warning_and_without_torch():
    script = """
import sys, warnings, logging
warnings.simplefilter("error")
import helm.benchmark.run as run
said = []
handler = logging.Handler(); handler.emit = said.append
logging.getLogger("helm").addHandler(handler)
modules = run.load_entry_point_plugins()
assert "flexgen_helm.plugin" in [module.__name__ for module in modules]
assert not [record for record in said if record.levelno >= logging.WARNING], said
print([name for name in ("torch", "transformers", "numba", "cvxpy") if name in sys.modules])
"""
    output = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout
    assert output.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize("runner", ["flexgen_helm.FlexGenRunner", "other.Runner"])
def test_torch_is_on_its_way_once_our_runner_is_asked_for(runner):
    script = """
import flexgen_helm.plugin
from flexgen_helm.adapter.engine_process import ENGINE_PROCESS
print(ENGINE_PROCESS.started)
"""
    command = [sys.executable, "-c", script, "--runner-class-name", runner]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert output.strip() == str(runner.startswith("flexgen_helm"))


def test_every_known_model_is_registered_with_every_setting():
    names = plugin.registered_names()
    assert len(names) == len(set(names)) == len(KNOWN_MODELS) * 25
    for name in names:
        deployment = deployments.DEPLOYMENT_NAME_TO_MODEL_DEPLOYMENT[name]
        assert deployment.model_name == name
        assert metadata.get_model_metadata(name).access == "open"
        assert deployment.tokenizer_name in tokenizers.TOKENIZER_NAME_TO_CONFIG


@pytest.mark.parametrize(
    ("name", "checkpoint", "compression", "display_name", "num_parameters"),
    [
        ("opt-30b", "facebook/opt-30b", "none", "OPT (30B)", 30_000_000_000),
        (
            "opt-125m-w4-kv4",
            "facebook/opt-125m",
            "w4-kv4",
            "OPT (125M), 4-bit weights and KV cache",
            125_000_000,
        ),
        (
            "opt-iml-max-1.3b-w8",
            "facebook/opt-iml-max-1.3b",
            "w8",
            "OPT-IML-Max (1.3B), 8-bit weights",
            1_300_000_000,
        ),
        (
            "galactica-6.7b-w4-kv2",
            "facebook/galactica-6.7b",
            "w4-kv2",
            "Galactica (6.7B), 4-bit weights and 2-bit KV cache",
            6_700_000_000,
        ),
    ],
)
def test_known_models(name, checkpoint, compression, display_name, num_parameters):
    deployment = deployments.get_model_deployment(f"flexgen/{name}")
    model = metadata.get_model_metadata(f"flexgen/{name}")
    assert deployment.client_spec.args == {
        "checkpoint": checkpoint,
        "compression": compression,
        "dtype": "auto",
    }
    assert (deployment.max_sequence_length, deployment.max_request_length) == (2046, 2047)
    assert model.display_name == display_name
    assert model.num_parameters == num_parameters


def test_models_of_a_family_share_a_tokenizer():
    names = {
        model.name: deployments.get_model_deployment(f"flexgen/{model.name}").tokenizer_name
        for model in KNOWN_MODELS
    }
    assert names["opt-125m"] == names["opt-iml-30b"] == "flexgen/opt"
    assert names["galactica-120b"] == "flexgen/galactica"
    assert names["opt-embedded"] == "flexgen/opt-embedded"
    config = tokenizers.get_tokenizer_config("flexgen/opt")
    assert (config.end_of_text_token, config.prefix_token) == ("</s>", "</s>")
    assert config.tokenizer_spec.args == {"pretrained_model_name_or_path": "facebook/opt-125m"}


@pytest.mark.parametrize(
    "group", ["all", "text", "text_code", "full_functionality_text", "limited_functionality_text"]
)
def test_no_group_of_helm_grows(group):
    expanded = ModelRunExpander("").get_model_group_to_model_names()[group]
    assert not [name for name in expanded if name.startswith("flexgen/")]


def run_spec(model):
    [spec] = construct_run_specs(
        parse_object_spec(f"dyck_language:num_parenthesis_pairs=3,model={model}")
    )
    return spec


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("flexgen/opt-30b-w4", "flexgen/opt-30b-w4"),
        ("flexgen/opt-30b-w4-g32-fp32", "flexgen/opt-30b-w4-g32-fp32"),
        ("flexgen/someone/their-opt-w4", "someone/their-opt-w4"),
    ],
)
def test_run_entries(name, model):
    spec = run_spec(name)
    assert spec.adapter_spec.model_deployment == name
    assert spec.adapter_spec.model == model
    assert spec.name.endswith(f"model={model.replace('/', '_')}")


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "my-opt"
    path.mkdir()
    config = {
        "model_type": "opt",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "ffn_dim": 128,
        "vocab_size": 100,
        "max_position_embeddings": 256,
    }
    path.joinpath("config.json").write_text(json.dumps(config))
    return path


def test_a_directory_with_an_absolute_path(directory):
    name = f"flexgen/{directory}-w4-kv8"
    assert name.startswith("flexgen//")
    deployment = deployments.get_model_deployment(run_spec(name).adapter_spec.model_deployment)
    assert deployment.client_spec.args["checkpoint"] == str(directory)
    assert deployment.client_spec.args["compression"] == "w4-kv8"
    assert (deployment.max_sequence_length, deployment.max_request_length) == (254, 255)
    model = metadata.get_model_metadata(deployment.model_name)
    assert model.display_name == "my-opt, 4-bit weights and 8-bit KV cache"
    assert model.num_parameters > 0
    tokenizer = tokenizers.get_tokenizer_config(deployment.tokenizer_name)
    assert tokenizer.tokenizer_spec.args == {"pretrained_model_name_or_path": str(directory)}


@pytest.mark.parametrize("relative", ["my-opt", "./my-opt", "../{parent}/my-opt"])
def test_a_directory_with_a_relative_path(directory, monkeypatch, relative):
    monkeypatch.chdir(directory.parent)
    name = relative.format(parent=directory.parent.name)
    registration = plugin.build(f"flexgen/{name}-w4")
    args = registration.deployment.client_spec.args
    assert Path(args["checkpoint"]).is_absolute()
    assert Path(args["checkpoint"]).samefile(directory)
    assert registration.deployment.model_name == "/".join(f"flexgen/{name}-w4".split("/")[-2:])


def test_a_hub_id_of_a_known_model_is_described_as_such():
    registration = plugin.build("flexgen/facebook/opt-125m-w4")
    assert registration.metadata.name == "facebook/opt-125m-w4"
    assert registration.metadata.display_name == "OPT (125M), 4-bit weights"
    assert registration.deployment.tokenizer_name == "flexgen/opt"


def test_tokenizers_are_generated_too(directory):
    name = f"flexgen/{directory}"
    tokenizers.TOKENIZER_NAME_TO_CONFIG.pop(name, None)
    config = tokenizers.get_tokenizer_config(name)
    assert config.name == name
    assert issubclass(
        get_class_by_name(config.tokenizer_spec.class_name),
        get_class_by_name(plugin.TOKENIZER_CLASS),
    )


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("flexgen/opt-31b", DeploymentError, r"checkpoint 'opt-31b' is neither .* opt-125m"),
        ("flexgen//no/such/dir-w4", DeploymentError, "'/no/such/dir' is neither a known model"),
        ("flexgen/./no", DeploymentError, "nor a directory with a config.json"),
        ("flexgen/opt-30b-w5", InvalidCompressionError, "weight_bits=5 is not supported"),
        ("flexgen/", DeploymentError, "deployment 'flexgen/' is not one of ours"),
    ],
)
def test_names_that_mean_nothing(name, error, message):
    with pytest.raises(error, match=message):
        deployments.get_model_deployment(name)


def test_a_damaged_configuration_is_named(directory):
    directory.joinpath("config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is no valid JSON .* fetch it again"):
        plugin.build(f"flexgen/{directory}")


def test_what_was_registered_before_is_left_alone(directory):
    registration = plugin.build(f"flexgen/{directory}-w8")
    registration.register()
    registration.register()
    names = [deployment.name for deployment in deployments.ALL_MODEL_DEPLOYMENTS]
    assert names.count(registration.deployment.name) == 1


def test_settings_have_words():
    texts = {describe(compression) for compression in COMPRESSION_SETTINGS}
    assert len(texts) == 25
    assert describe(Compression()) == ""
    assert describe(Compression(cache_bits=4, group_size=32)) == "4-bit KV cache, groups of 32"


def test_known_models_are_found_by_name_and_hub_id():
    assert find_known("opt-66b") is find_known("facebook/opt-66b")
    assert find_known("opt-175b") is None
