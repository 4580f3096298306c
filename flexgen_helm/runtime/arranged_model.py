"""A loaded model, and what goes where: decided anew for what is to come, if that needs it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

from tqdm import tqdm

from flexgen_helm.errors import BudgetError
from flexgen_helm.runtime.arrangement import Arrangement, Arranger, Expected
from flexgen_helm.runtime.loaded_model import Model
from flexgen_helm.runtime.loader import Loader
from flexgen_helm.specs.policy import Policy
from flexgen_helm.specs.request import GenerationRequest
from flexgen_helm.specs.workload import Workload


class ArrangedModel:
    """A model with everything in its place.

    Args:
        loaded: the model, loaded as it is arranged.
        arrangement: how it is, to begin with.
        arranger: decides what goes elsewhere.
        loader: loads it once more then.
        automatic: whether another policy may be chosen.
    """

    def __init__(
        self,
        loaded: Model,
        arrangement: Arrangement,
        arranger: Arranger,
        loader: Loader,
        *,
        automatic: bool,
    ) -> None:
        self.loaded: Model | None = loaded
        """`None` once its memory was given back."""
        self._arranger, self._loader = arranger, loader
        self._automatic, self._planned = automatic, False
        self._set(arrangement)

    def _set(self, arrangement: Arrangement) -> None:
        self.arrangement = arrangement
        """What was decided."""
        self.policy = arrangement.policy
        """As decided, or with smaller micro-batches where memory turned out to be short."""
        self.cache_tokens = arrangement.memory.cache_tokens
        """Tokens the KV cache has room for, likewise; `None` if nobody has said."""

    def arrange_for(self, workload: Workload) -> None:
        """See what requests take, and choose another policy if they are the first or need it.

        Raises:
            BudgetError: the policy that was given has no room for them.
            PlanningError: what was to be planned for them could not be.
        """
        if self.policy != self.arrangement.policy:
            return  # memory was short, and what there is room for is known better than from a plan
        first = self.arrangement.plan is not None and not self._planned
        arrangement = None if first and self._automatic else self._with_present_policy(workload)
        if arrangement is None:
            self._plan_for(workload)
        else:
            self._set(arrangement)

    def expect(self, workload: Workload) -> Callable[[GenerationRequest], Expected]:
        """Return what says of each request of a workload what it should cost."""
        return self._arranger.expect(self.arrangement, workload)

    def make_do_with(self, policy: Policy, cache_tokens: int) -> None:
        """Go on with what memory has been found to have room for, if that is less."""
        if policy != self.policy:
            self.policy, self.cache_tokens = policy, cache_tokens

    def tell_plan(self) -> None:
        """Say what was planned for requests, if anything was."""
        self._planned = True
        if self.arrangement.plan is not None:
            tqdm.write(self.arrangement.plan.summary, file=sys.stderr)

    def close(self) -> None:
        """Give back memory and disk."""
        if self.loaded is not None:
            self.loaded.close()
            self.loaded = None

    def _with_present_policy(self, workload: Workload) -> Arrangement | None:
        """Return what it takes; `None` if it may be another and has no room for every request."""
        try:
            arrangement = self._arranger.with_policy(self.policy, workload)
        except BudgetError:
            if not self._automatic:
                raise
            return None
        tokens = arrangement.memory.cache_tokens
        if self._automatic and tokens is not None and workload.most_cached > tokens:
            return None
        return replace(arrangement, plan=self.arrangement.plan)

    def _plan_for(self, workload: Workload) -> None:
        """Plan once more, now that requests are known, and say what was planned."""
        arrangement = self._arranger.plan(workload)
        if arrangement.policy != self.policy:
            self.close()
            self.loaded = self._loader.load(arrangement)
        self._set(arrangement)
        self.tell_plan()
