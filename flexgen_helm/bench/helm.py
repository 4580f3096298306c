"""`bench helm`: the same suites through HELM's HuggingFaceClient and through ours.

1. *pilot*: a few instances with each setting of HELM's client, to find the fastest for each suite.
2. *timed*: all instances; ours before and after HELM's client, so that a machine that gets slower
   or faster in between does not decide the ratio.
3. *scores*: a few instances with both in float32, where the two must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median

from flexgen_helm.bench.clients import OURS, THEIRS, Client, our_client, peer_client
from flexgen_helm.bench.helm_run import HelmRun, RunRow, Site, Size, Timed, timed_run
from flexgen_helm.bench.report import Cell, Report
from flexgen_helm.bench.scores import ScoreRow, compare_runs
from flexgen_helm.bench.suites import Suite

Announce = Callable[[RunRow], None]
"""Told of every run when it is done."""

PILOT, TIMED, SCORES = "pilot", "timed", "scores"

MEASURES = {"wall_time": "wall_s", "execution_time": "execution_s"}
"""Ratios reported for each suite, and the fields of `RunRow` they come from."""


@dataclass(frozen=True, kw_only=True)
class HelmBenchmark:
    """What is run."""

    suites: Sequence[Suite]

    size: Size
    """Of the timed runs."""

    rounds: int
    """Times that each suite is timed."""

    peers: Sequence[Client]
    """Settings of HELM's client that compete for being our opponent."""

    pilot_instances: int
    """Instances on which the fastest of several peers is found; 0 to time all of them."""

    score_instances: int
    """Instances on which scores are compared in float32; 0 not to compare them there."""

    @property
    def has_pilot(self) -> bool:
        """Whether there is a choice to be made before anything is timed."""
        return self.pilot_instances > 0 and len(self.peers) > 1

    @property
    def conditions(self) -> dict[str, Cell]:
        """What to report with the figures."""
        peers = ", ".join(f"{peer.dtype} with {peer.threads} threads" for peer in self.peers)
        chosen = f"fastest on {self.pilot_instances} instances of" if self.has_pilot else "each of"
        return {
            "peer": f"{chosen} {peers}",
            "rounds": self.rounds,
            "commands": "flexgen-helm run for ours, helm-run for theirs, with the same arguments",
            "order": "ours, theirs, ours",
            "ratio": "median of theirs over median of ours; where several are timed, the fastest",
            "execution": "between having requests and having results, from HELM's log",
            "caches": "HELM's request cache is empty before every run",
            "sampling": "greedy, also in summarization, where HELM's own run entry samples",
        }


class HelmSession:
    """Runs one `helm-run` after the other and keeps the rows."""

    def __init__(self, site: Site, announce: Announce) -> None:
        self.site = site
        self.rows: list[RunRow] = []
        self._announce = announce

    def run(self, suite: Suite, client: Client, size: Size, *, stage: str) -> Timed:
        """Run a suite.

        Raises:
            CommandError: it failed.
        """
        number = len(self.rows) + 1
        run = HelmRun(suite=suite, client=client, size=size, stage=stage, number=number)
        timed = timed_run(run, self.site)
        self.rows.append(timed.row)
        self._announce(timed.row)
        return timed


def run_helm_benchmark(
    benchmark: HelmBenchmark, session: HelmSession, conditions: Mapping[str, Cell]
) -> Report:
    """Carry out a benchmark, and report it with these and its own conditions.

    Raises:
        CommandError: a `helm-run` failed.
    """
    opponents = {suite.name: _choose_peers(benchmark, suite, session) for suite in benchmark.suites}
    scores: list[ScoreRow] = []
    for _ in range(benchmark.rounds):
        for suite in benchmark.suites:
            scores += _time(suite, opponents[suite.name], benchmark.size, session)
    if benchmark.score_instances:
        size = benchmark.size._replace(instances=benchmark.score_instances)
        scores += [_compare_in_float32(suite, size, session) for suite in benchmark.suites]
    return Report(
        ratios=ratios(session.rows),
        conditions={**conditions, **benchmark.conditions},
        rows=[*map(asdict, session.rows), *map(asdict, scores)],
    )


def ratios(rows: Sequence[RunRow]) -> dict[str, float]:
    """How many times longer HELM's client took than ours, in the timed runs, by suite and measure.

    Where several of its settings were timed, the fastest counts.
    """
    timed = [row for row in rows if row.stage == TIMED]
    return {
        f"{suite}_{measure}": _ratio([row for row in timed if row.suite == suite], field)
        for suite in dict.fromkeys(row.suite for row in timed)
        for measure, field in MEASURES.items()
    }


def _choose_peers(benchmark: HelmBenchmark, suite: Suite, session: HelmSession) -> Sequence[Client]:
    if not benchmark.has_pilot:
        return benchmark.peers
    size = Size(instances=benchmark.pilot_instances, train_trials=1)
    seconds = {
        peer: session.run(suite, peer, size, stage=PILOT).row.execution_s
        for peer in benchmark.peers
    }
    return [min(seconds, key=lambda peer: seconds[peer])]


def _time(
    suite: Suite, peers: Sequence[Client], size: Size, session: HelmSession
) -> Iterator[ScoreRow]:
    """Time a suite once, and tell how far the two differ in the dtype each was fastest in."""
    for peer in peers:
        ours = our_client(session.site.checkpoint)
        session.run(suite, ours, size, stage=TIMED)
        theirs = session.run(suite, peer, size, stage=TIMED)
        yield compare_runs(theirs, session.run(suite, ours, size, stage=TIMED))


def _compare_in_float32(suite: Suite, size: Size, session: HelmSession) -> ScoreRow:
    theirs = session.run(suite, peer_client("float32-4"), size, stage=SCORES)
    ours = our_client(session.site.checkpoint, dtype="float32")
    return compare_runs(theirs, session.run(suite, ours, size, stage=SCORES))


def _ratio(rows: Sequence[RunRow], field: str) -> float:
    seconds: dict[tuple[str, str, int], list[float]] = {}
    for row in rows:
        seconds.setdefault((row.client, row.dtype, row.threads), []).append(getattr(row, field))
    medians = {client: median(values) for client, values in seconds.items()}
    theirs = min(value for (name, *_), value in medians.items() if name == THEIRS)
    [ours] = (value for (name, *_), value in medians.items() if name == OURS)
    return round(theirs / ours, 2)
