"""Evaluate OPT models larger than the GPU at hand with CRFM HELM.

Names are resolved when first used, so that importing the package stays cheap: HELM imports it for
its entry point before it knows whether it will be needed.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Threads of GNU OpenMP, which torch computes with on Linux, spin for milliseconds when they wait
# for each other. If two of them share a core, or another process is busy, one waits for what the
# other keeps from running, and small models become 20 times slower. A shorter spin costs next to
# nothing. It must be set before torch is loaded; what the user has set stays.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

_HOME_OF = {
    "Completion": "specs.request",
    "Compression": "specs.compression",
    "Engine": "runtime.engine",
    "FlexGenError": "errors",
    "FlexGenRunner": "adapter.runner",
    "GenerationRequest": "specs.request",
    "GenerationResult": "specs.request",
    "MemoryBudget": "specs.budget",
    "Policy": "specs.policy",
    "SamplingParams": "specs.request",
    "compare": "tables.compare",
    "compare_settings": "tables.compare",
    "efficiency": "tables.collect",
    "scenario_metrics": "tables.collect",
    "write_tables": "tables.write",
}

__all__ = ["__version__", *_HOME_OF]

if TYPE_CHECKING:
    from flexgen_helm.adapter.runner import FlexGenRunner
    from flexgen_helm.errors import FlexGenError
    from flexgen_helm.runtime.engine import Engine
    from flexgen_helm.specs.budget import MemoryBudget
    from flexgen_helm.specs.compression import Compression
    from flexgen_helm.specs.policy import Policy
    from flexgen_helm.specs.request import (
        Completion,
        GenerationRequest,
        GenerationResult,
        SamplingParams,
    )
    from flexgen_helm.tables.collect import efficiency, scenario_metrics
    from flexgen_helm.tables.compare import compare, compare_settings
    from flexgen_helm.tables.write import write_tables


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
