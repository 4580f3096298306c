import pytest
import yaml
from helm.benchmark.model_deployment_registry import ModelDeployment
from helm.benchmark.tokenizer_config_registry import TokenizerConfig

from flexgen_helm.bench.clients import PEERS, our_client, peer_client, write_peer
from flexgen_helm.errors import BenchmarkError


def section(path, name):
    content = yaml.safe_load((path / f"{name}.yaml").read_text())
    [entry] = content[name]
    return entry


def test_helm_reads_what_its_client_needs(tmp_path):
    client = peer_client("bfloat16-1")
    write_peer(client, checkpoint=tmp_path / "opt", positions=2048, local_path=tmp_path)
    deployment = section(tmp_path, "model_deployments")
    assert deployment["name"] == client.model == section(tmp_path, "tokenizer_configs")["name"]
    assert deployment["client_spec"]["args"] == {
        "pretrained_model_name_or_path": str(tmp_path / "opt"),
        "torch_dtype": "torch.bfloat16",
    }
    assert {*deployment} <= {*ModelDeployment.__dataclass_fields__}
    assert {*section(tmp_path, "tokenizer_configs")} <= {*TokenizerConfig.__dataclass_fields__}


def test_every_client_has_a_label_of_its_own(tmp_path):
    clients = [
        *map(peer_client, PEERS),
        our_client(tmp_path),
        our_client(tmp_path, dtype="float32"),
    ]
    assert len({client.label for client in clients}) == len(clients)


def test_our_client_runs_as_the_readme_says(tmp_path):
    client = our_client(tmp_path / "opt", dtype="float32")
    assert client.model == f"flexgen/{tmp_path}/opt-fp32"
    assert client.program == ("flexgen_helm", "run")


@pytest.mark.parametrize("setting", ["float32", "float64-1", "bfloat16-many", ""])
def test_a_peer_that_does_not_exist(setting):
    with pytest.raises(BenchmarkError, match="is not DTYPE-THREADS: name some of float32-4,"):
        peer_client(setting)
