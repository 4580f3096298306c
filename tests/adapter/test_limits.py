"""What is allowed for all deployments, from the command line to the engine."""

import argparse
import os

import pytest

from flexgen_helm.adapter import limits
from flexgen_helm.adapter.limits import MEMORY_VARIABLES, OFFLOAD_VARIABLE, set_limits
from flexgen_helm.cli import run as run_module
from flexgen_helm.errors import InvalidSettingError
from flexgen_helm.specs.budget import MemoryBudget


@pytest.fixture(autouse=True)
def no_limits(monkeypatch):
    for variable in (*MEMORY_VARIABLES.values(), OFFLOAD_VARIABLE):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)


def settings_of(client):
    return client.service._settings


def test_arguments_of_ours_reach_the_engine_and_the_rest_helm(make_client, monkeypatch):
    commands = []
    monkeypatch.setattr(run_module, "helm_command", lambda rest: commands.append(rest) or ["helm"])
    monkeypatch.setattr(run_module, "_helm_run", lambda: 0)
    ours = ["--device-memory", "16GB", "--disk-memory=1TB", "--offload-dir", "/fast"]
    arguments = ["--suite", "a", *ours, "-m", "3"]
    assert run_module.run_run(argparse.Namespace(helm_arguments=arguments)) == 0
    assert commands == [["--suite", "a", "-m", "3"]]
    settings = settings_of(make_client())
    assert settings.budget == MemoryBudget(device=16 * 10**9, disk=10**12)
    assert settings.offload_dir == "/fast"


def test_what_a_deployment_says_itself_counts(make_client):
    set_limits({"device": "16GB"}, "/fast")
    settings = settings_of(make_client(budget={"device": "1GB"}, offload_dir="/own"))
    assert (settings.budget, settings.offload_dir) == (MemoryBudget(device=10**9), "/own")


def test_nothing_is_allowed_for_nobody(make_client):
    set_limits(dict.fromkeys(MEMORY_VARIABLES), None)
    settings = settings_of(make_client())
    assert (settings.budget, settings.offload_dir) == (MemoryBudget(), None)
    assert limits.default_offload_dir() is None


def test_a_size_that_is_none_is_refused_at_once():
    with pytest.raises(InvalidSettingError, match="host memory 'lots' is not a size"):
        set_limits({"device": "1GB", "host": "lots"}, None)
    assert not set(MEMORY_VARIABLES.values()) & os.environ.keys()
