"""Every error this package raises on purpose, one tree.

    FlexGenError
    ├── InvalidRequestError          a request asks for something the model cannot do
    │   └── UnsupportedRequestError  a field of a HELM request that OPT has no answer to
    ├── InvalidSettingError          a dtype or block shape no engine can be built with
    │   ├── InvalidCompressionError  bits, group size or a compression label that does not exist
    │   ├── BudgetError              a policy that takes more memory than is allowed
    │   │   └── InfeasibleError      no policy of this model fits this machine and budget
    │   ├── HardwareError            a hardware profile is missing, incomplete or out of range
    │   └── WorkloadError            lengths of requests are missing or out of range
    ├── PlanningError                the planner found no answer
    │   ├── UnboundedError           a plan without a least time: a rate makes no sense
    │   └── SolverError              the solver of the linear program failed
    ├── CheckpointError              a checkpoint is missing, incomplete, corrupt or not an OPT
    │   └── UnsupportedModelError    the checkpoint is sound but its architecture is not ours
    ├── StoreError                   a weight store is damaged, or its disk cannot be used
    │   └── DiskFullError            the disk, or what may be used of it, has no room for a run
    ├── DeploymentError              a deployment name that means no model, or the runs of another
    ├── NumericsError                the model computed NaN
    ├── EngineClosedError            a request reached an engine that is shut down
    ├── CommandError                 a command started by this one failed
    │   └── CommandTimeoutError      it did not end in the time it was given
    ├── BenchmarkError               a benchmark lacks data, or has a setting that does not exist
    ├── StagingError                 scenario data that are missing, or not what HELM reads
    └── TablesError                  run directories that hold nothing to tabulate

A message names the offending value, the limit it broke and the remedy. None of these goes away
by trying again with the same input and as much memory and disk, so the adapter reports them to HELM
as non-retriable.
"""


class FlexGenError(Exception):
    """Base of all errors raised on purpose by flexgen_helm."""


class InvalidRequestError(FlexGenError):
    """A generation request is malformed or exceeds a limit of the model."""


class UnsupportedRequestError(InvalidRequestError):
    """A HELM request uses a field the model cannot serve (images, chat messages, ...)."""


class InvalidSettingError(FlexGenError):
    """A setting of the engine is outside its range."""


class InvalidCompressionError(InvalidSettingError):
    """A compression setting does not exist."""


class BudgetError(InvalidSettingError):
    """A policy takes more memory than is allowed."""


class InfeasibleError(BudgetError):
    """No policy fits: trying again helps only with more memory, a smaller model or compression."""


class HardwareError(InvalidSettingError):
    """A hardware profile cannot be used."""


class WorkloadError(InvalidSettingError):
    """What is to be planned for is not known, or makes no sense."""


class PlanningError(FlexGenError):
    """The planner has failed, and it was not the budget's fault."""


class UnboundedError(PlanningError):
    """The linear program has no least time: trying again does not help, another profile may."""


class SolverError(PlanningError):
    """The solver has stopped without an answer: another release of cvxpy may help."""


class CheckpointError(FlexGenError):
    """A checkpoint is missing, incomplete or corrupt."""


class UnsupportedModelError(CheckpointError):
    """A checkpoint is not of an architecture this package runs."""


class StoreError(FlexGenError):
    """A weight store is incomplete or corrupt, or cannot be read or written."""


class DiskFullError(StoreError):
    """What a run makes does not fit on disk, or not into what may be used of it."""


class DeploymentError(FlexGenError):
    """A deployment name has no checkpoint and compression setting, or no runs, of its own."""


class NumericsError(FlexGenError):
    """The model's logits are not numbers: an overflow in the compute dtype or the KV cache."""


class EngineClosedError(FlexGenError):
    """The engine was closed before or while the request waited."""


class CommandError(FlexGenError):
    """A command this one started ended with an error."""


class CommandTimeoutError(CommandError):
    """A command this one started did not end in time."""


class BenchmarkError(FlexGenError):
    """A benchmark cannot be run as asked."""


class StagingError(FlexGenError):
    """A scenario's data cannot be put where HELM looks for them."""


class TablesError(FlexGenError):
    """No table can be made from the given run directories."""
