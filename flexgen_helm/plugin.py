"""HELM entry point: registers our models, deployments and tokenizers when HELM imports it.

Every compression setting of a checkpoint is a HELM *model* of its own, named like its deployment,
because HELM's tables have one row per model.

The models carry ``UNSUPPORTED_MODEL_TAG`` next to their text tags. It is HELM's only way to keep a
model out of run entry groups (``model=all``, ``model=text``, ``model=full_functionality_text``):
without it, installing this package would add some 450 models to each. Nothing else in HELM looks
at these tags, so a deployment given by name works as any other.

What ``prod_env/*.yaml`` registered before (HELM reads it first) is left as it is.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from helm.benchmark import model_deployment_registry as deployments
from helm.benchmark import model_metadata_registry as metadata
from helm.benchmark import tokenizer_config_registry as tokenizers

from flexgen_helm.adapter import run_specs  # noqa: F401 - importing it registers run entries
from flexgen_helm.adapter.engine_process import ENGINE_PROCESS, wants_engine
from flexgen_helm.errors import DeploymentError, UnsupportedModelError
from flexgen_helm.specs.catalog import (
    COMPRESSION_SETTINGS,
    DEFAULT_POSITIONS,
    KNOWN_MODELS,
    KnownModel,
    KnownTokenizer,
    describe,
    find_known,
)
from flexgen_helm.specs.checkpoint_files import is_hub_id, read_json
from flexgen_helm.specs.deployment import PREFIX, DeploymentSpec
from flexgen_helm.specs.model import ModelSpec

CLIENT_CLASS = "flexgen_helm.adapter.client.FlexGenClient"
TOKENIZER_CLASS = "flexgen_helm.adapter.tokenizer.FlexGenTokenizer"
END_OF_TEXT = "</s>"
"""Ends a text, and begins one, in OPT and Galactica alike."""

TAGS = (
    metadata.TEXT_MODEL_TAG,
    metadata.FULL_FUNCTIONALITY_TEXT_MODEL_TAG,
    metadata.UNSUPPORTED_MODEL_TAG,
)

_LOCK = threading.Lock()
"""HELM asks generators from several threads at once."""


@dataclass(frozen=True, kw_only=True)
class Registration:
    """The three entries that make one deployment known to HELM."""

    deployment: deployments.ModelDeployment
    metadata: metadata.ModelMetadata
    tokenizer: tokenizers.TokenizerConfig

    def register(self) -> None:
        """Add what is not there yet."""
        if self.tokenizer.name not in tokenizers.TOKENIZER_NAME_TO_CONFIG:
            tokenizers.register_tokenizer_config(self.tokenizer)
        if self.metadata.name not in metadata.MODEL_NAME_TO_MODEL_METADATA:
            metadata.register_model_metadata(self.metadata)
        if self.deployment.name not in deployments.DEPLOYMENT_NAME_TO_MODEL_DEPLOYMENT:
            deployments.register_model_deployment(self.deployment)


def build(name: str) -> Registration:
    """Work out the entries of any of our deployment names.

    Raises:
        DeploymentError: the name is malformed or its checkpoint is neither known, nor a directory
            with a `config.json`, nor a hub id.
        InvalidCompressionError: its compression label names unsupported bits or group size.
        CheckpointError: the `config.json` is damaged.
    """
    spec = DeploymentSpec.parse(name)
    return _build(spec, name=name, model=find_known(spec.checkpoint) or _unknown(spec.checkpoint))


def _build(spec: DeploymentSpec, *, name: str, model: KnownModel) -> Registration:
    config = _read_config(model.checkpoint)
    positions = config.get("max_position_embeddings", DEFAULT_POSITIONS)
    # The name HELM derives from `model=` in a run entry: see ModelRunExpander.
    model_name = "/".join(name.split("/")[-2:])
    deployment = deployments.ModelDeployment(
        name=name,
        model_name=model_name,
        tokenizer_name=PREFIX + model.tokenizer.name,
        # A request leaves one position to the BOS token the adapter adds. HELM's language modeling
        # writes it into the first window itself, on top of a full *sequence*: one token less.
        max_sequence_length=positions - 2,
        max_request_length=positions - 1,
        client_spec=deployments.ClientSpec(
            class_name=CLIENT_CLASS,
            args={
                "checkpoint": model.checkpoint,
                "compression": spec.compression.label,
                "dtype": spec.dtype,
            },
        ),
    )
    return Registration(
        deployment=deployment,
        metadata=_metadata(spec, model_name=model_name, model=model, config=config),
        tokenizer=_tokenizer(model.tokenizer),
    )


def _metadata(
    spec: DeploymentSpec, *, model_name: str, model: KnownModel, config: dict[str, Any]
) -> metadata.ModelMetadata:
    dtype = "" if spec.dtype == "auto" else spec.dtype
    details = ", ".join(text for text in (describe(spec.compression), dtype) if text)
    return metadata.ModelMetadata(
        name=model_name,
        creator_organization_name=model.creator,
        display_name=f"{model.display_name}, {details}" if details else model.display_name,
        description=f"{model.description} Run with {details}." if details else model.description,
        access="open",
        release_date=model.release_date,
        tags=list(TAGS),
        num_parameters=model.num_parameters or _count_parameters(config),
    )


def _tokenizer(tokenizer: KnownTokenizer) -> tokenizers.TokenizerConfig:
    return tokenizers.TokenizerConfig(
        name=PREFIX + tokenizer.name,
        tokenizer_spec=tokenizers.TokenizerSpec(
            class_name=TOKENIZER_CLASS,
            args={"pretrained_model_name_or_path": tokenizer.source},
        ),
        end_of_text_token=END_OF_TEXT,
        prefix_token=END_OF_TEXT,
    )


def _unknown(checkpoint: str) -> KnownModel:
    """Describe a checkpoint that is only known by its directory or hub id."""
    if (Path(checkpoint) / "config.json").is_file():
        source = str(Path(checkpoint).absolute())
    elif is_hub_id(checkpoint):
        source = checkpoint
    else:
        raise DeploymentError(
            f"checkpoint {checkpoint!r} is neither a known model, nor a directory with a"
            f" config.json, nor a hub id (ORG/NAME): known models are"
            f" {', '.join(model.name for model in KNOWN_MODELS)}"
        )
    return KnownModel(
        name=checkpoint,
        checkpoint=source,
        display_name=Path(checkpoint).name,
        description=f"The checkpoint {checkpoint}.",
        creator="Unknown",
        num_parameters=None,
        release_date=None,
        tokenizer=KnownTokenizer(name=checkpoint, source=source),
    )


def _read_config(checkpoint: str) -> dict[str, Any]:
    """Return the `config.json` of a local checkpoint; nothing for one on the hub."""
    file = Path(checkpoint) / "config.json"
    return read_json(file) if file.is_file() else {}


def _count_parameters(config: dict[str, Any]) -> int | None:
    try:
        return ModelSpec.from_config(config).num_parameters
    except UnsupportedModelError:  # loading it will say what is wrong
        return None


def generate_deployment(name: str) -> deployments.ModelDeployment:
    """Register any other of our deployments when it is first asked for."""
    registration = build(name)
    with _LOCK:
        registration.register()
    return deployments.DEPLOYMENT_NAME_TO_MODEL_DEPLOYMENT[name]


def generate_tokenizer(name: str) -> tokenizers.TokenizerConfig:
    """Register any other of our tokenizers when it is first asked for."""
    config = build(name).tokenizer
    with _LOCK:
        if name not in tokenizers.TOKENIZER_NAME_TO_CONFIG:
            tokenizers.register_tokenizer_config(replace(config, name=name))
    return tokenizers.TOKENIZER_NAME_TO_CONFIG[name]


def registered_names() -> list[str]:
    """Names of the deployments that are registered on import."""
    return [
        DeploymentSpec(checkpoint=model.name, compression=compression).name
        for model in KNOWN_MODELS
        for compression in COMPRESSION_SETTINGS
    ]


if wants_engine(sys.argv):
    ENGINE_PROCESS.start()  # helm-run itself takes seconds from here to where it is needed
deployments.model_deployment_generator(PREFIX)(generate_deployment)
tokenizers.tokenizer_config_generator(PREFIX)(generate_tokenizer)
for _name in registered_names():
    build(_name).register()
