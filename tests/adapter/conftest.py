import dataclasses

import pytest
from helm.benchmark.model_deployment_registry import ClientSpec
from helm.common.cache import SqliteCacheConfig

from flexgen_helm import plugin
from flexgen_helm.adapter.client import FlexGenClient
from flexgen_helm.adapter.engines import ENGINES
from flexgen_helm.adapter.tokenizer import FlexGenTokenizer
from tests.adapter import backends
from tests.conftest import byte_tokenizer


@pytest.fixture
def watch(monkeypatch):
    """What the watched backend is asked for in this test, from an empty memory on."""
    ENGINES.close_engine()
    monkeypatch.setattr(backends, "WATCH", backends.Watch())
    return backends.WATCH


@pytest.fixture(scope="session")
def byte_checkpoint(tmp_path_factory):
    """A directory with tokenizer and configuration but no weights, as the fake backend needs."""
    directory = tmp_path_factory.mktemp("byte-checkpoint")
    byte_tokenizer().save_pretrained(directory)
    directory.joinpath("config.json").write_text('{"max_position_embeddings": 2048}')
    return directory


@pytest.fixture
def make_client(tmp_path, byte_checkpoint):
    """Clients of the watched backend, with a cache of this test."""

    def make(**settings):
        config = SqliteCacheConfig(str(tmp_path / "cache.sqlite"))
        defaults = {
            "tokenizer": FlexGenTokenizer(str(byte_checkpoint), str(byte_checkpoint)),
            "checkpoint": str(tmp_path),
            "backend": backends.WATCHED,
        }
        return FlexGenClient(config, **(defaults | settings))

    return make


@pytest.fixture
def deploy(tmp_path, byte_checkpoint):
    """Register deployments nobody else uses, by default of the watched backend; returns a name."""

    def make(suffix="", **settings):
        checkpoint = settings.get("checkpoint", byte_checkpoint)
        registration = plugin.build(f"flexgen/{checkpoint}{suffix}")
        name = f"flexgen/{tmp_path.name}{suffix}"
        watched = {"checkpoint": str(tmp_path), "backend": backends.WATCHED}
        args = registration.deployment.client_spec.args | watched | settings
        dataclasses.replace(
            registration,
            metadata=dataclasses.replace(registration.metadata, name=name),
            deployment=dataclasses.replace(
                registration.deployment,
                name=name,
                model_name=name,
                client_spec=ClientSpec(class_name=plugin.CLIENT_CLASS, args=args),
            ),
        ).register()
        return name

    return make
