"""What users import, and what importing costs."""

import subprocess
import sys

import pytest

import flexgen_helm

PUBLIC = [
    "Completion",
    "Compression",
    "Engine",
    "FlexGenError",
    "FlexGenRunner",
    "GenerationRequest",
    "GenerationResult",
    "MemoryBudget",
    "Policy",
    "SamplingParams",
    "__version__",
    "compare",
    "compare_settings",
    "efficiency",
    "scenario_metrics",
    "write_tables",
]
LIGHT = [
    "flexgen_helm",
    "flexgen_helm.specs.request",
    "flexgen_helm.batching.blocks",
    "flexgen_helm.cli.main",
]
LIGHT_WITH_PANDAS = ["flexgen_helm.tables.compare", "flexgen_helm.tables.write"]


def test_public_names():
    assert sorted(flexgen_helm.__all__) == PUBLIC
    assert all(hasattr(flexgen_helm, name) for name in PUBLIC)
    assert dir(flexgen_helm) == PUBLIC


def test_other_names_are_no_attributes():
    with pytest.raises(AttributeError, match="module 'flexgen_helm' has no attribute 'Engines'"):
        flexgen_helm.Engines  # noqa: B018


def imported_by(module):
    code = f"import sys, {module}; print(*sys.modules)"
    return subprocess.check_output([sys.executable, "-c", code], text=True).split()


@pytest.mark.parametrize("module", LIGHT)
def test_light_imports(module):
    assert not {"torch", "transformers", "helm", "pandas", "cvxpy"} & set(imported_by(module))


@pytest.mark.parametrize("module", LIGHT_WITH_PANDAS)
def test_tables_need_no_model_code(module):
    assert not {"torch", "transformers", "helm", "cvxpy"} & set(imported_by(module))


def test_the_engine_needs_neither_helm_nor_a_solver():
    assert not {"helm", "cvxpy", "pandas"} & set(imported_by("flexgen_helm.runtime.engine"))
