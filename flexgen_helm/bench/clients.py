"""The two clients that are compared: how `helm-run` is told to use HELM's or ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flexgen_helm.errors import BenchmarkError
from flexgen_helm.files import write_text_atomically
from flexgen_helm.specs.deployment import DeploymentSpec

OURS = "flexgen_helm"
THEIRS = "HuggingFaceClient"

PEERS = ("float32-4", "bfloat16-4", "bfloat16-1")
"""Settings in which HELM's client can be fastest: both dtypes a CPU computes well in, with HELM's
default of four threads; in bfloat16 one thread is at times as fast, in float32 it never was."""

END_OF_TEXT = "</s>"


@dataclass(frozen=True, kw_only=True)
class Client:
    """Who answers the requests of a `helm-run`."""

    name: str
    """`OURS` or `THEIRS`."""

    dtype: str
    """Compute dtype; ``auto`` is ours to choose."""

    threads: int
    """``--num-threads``: requests that HELM makes at once."""

    model: str
    """Name of the deployment."""

    program: tuple[str, ...] = ("helm.benchmark.run",)
    """What Python is to run as `helm-run`: a module, and arguments that come first."""

    @property
    def label(self) -> str:
        """A name that is fit for a file and differs between any two clients of a benchmark."""
        return f"{self.name}-{self.dtype}-{self.threads}"


def our_client(checkpoint: Path, *, dtype: str = "auto") -> Client:
    """Return our client as the README runs it: ``flexgen-helm run``, with HELM's defaults."""
    return Client(
        name=OURS,
        dtype=dtype,
        threads=4,
        model=DeploymentSpec(checkpoint=str(checkpoint.absolute()), dtype=dtype).name,
        program=("flexgen_helm", "run"),
    )


def peer_client(setting: str) -> Client:
    """Return HELM's client with a setting such as those in `PEERS`: dtype and number of threads.

    Raises:
        BenchmarkError: there is no such setting.
    """
    dtype, _, threads = setting.rpartition("-")
    if dtype not in ("float32", "bfloat16", "float16") or not threads.isdecimal():
        raise BenchmarkError(
            f"peer {setting!r} is not DTYPE-THREADS: name some of {', '.join(PEERS)}, or another"
            " number of threads"
        )
    return Client(name=THEIRS, dtype=dtype, threads=int(threads), model=f"huggingface/opt-{dtype}")


def write_peer(client: Client, *, checkpoint: Path, positions: int, local_path: Path) -> None:
    """Make HELM's client on a local checkpoint known to a `helm-run` with this local path.

    Args:
        client: one of `peer_client`.
        checkpoint: directory of model and tokenizer.
        positions: longest sequence of the model, in tokens.
        local_path: HELM's ``--local-path``.
    """
    deployment = {
        "name": client.model,
        "model_name": client.model,
        "tokenizer_name": client.model,
        # As for our deployments, so that HELM gives both the same prompts.
        "max_sequence_length": positions - 2,
        "max_request_length": positions - 1,
        "client_spec": {
            "class_name": "helm.clients.huggingface_client.HuggingFaceClient",
            "args": {
                "pretrained_model_name_or_path": str(checkpoint),
                "torch_dtype": f"torch.{client.dtype}",
            },
        },
    }
    tokenizer = {
        "name": client.model,
        "tokenizer_spec": {
            "class_name": "helm.tokenizers.huggingface_tokenizer.HuggingFaceTokenizer",
            "args": {"pretrained_model_name_or_path": str(checkpoint)},
        },
        "end_of_text_token": END_OF_TEXT,
        "prefix_token": END_OF_TEXT,
    }
    _write_section(local_path, "model_deployments", deployment)
    _write_section(local_path, "tokenizer_configs", tokenizer)


def _write_section(local_path: Path, section: str, entry: dict[str, Any]) -> None:
    text = yaml.safe_dump({section: [entry]}, sort_keys=False)
    write_text_atomically(local_path / f"{section}.yaml", text)
