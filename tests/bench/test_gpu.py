import json
import subprocess
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from flexgen_helm.bench import gpu, gpu_process, gpu_session, upstream
from flexgen_helm.bench.gpu_benchmark import HELM, PADDED, SHARED, THROUGHPUT
from flexgen_helm.bench.gpu_session import GpuSession
from flexgen_helm.bench.gpu_trial import (
    ACCELERATE,
    OURS,
    UPSTREAM,
    GpuOutcome,
    GpuRow,
    GpuTrial,
)
from flexgen_helm.bench.gpu_workloads import Requests
from flexgen_helm.cli.main import main
from flexgen_helm.errors import CommandError
from flexgen_helm.model.dtypes import resolve_dtype
from flexgen_helm.specs.catalog import EMBEDDED_CHECKPOINT
from flexgen_helm.specs.shipped import typical_hardware
from tests.conftest import byte_tokenizer, save_random_checkpoint

HARDWARE = typical_hardware(unified=False, dtype="float16")


def row(system, setting, seconds=None, *, stage=THROUGHPUT, tokens=100, late=False, **others):
    outcome = None
    if seconds is not None:
        outcome = GpuOutcome(
            prefill_s=seconds / 2,
            decode_s=seconds / 2,
            generated_tokens=tokens,
            **{"allocated_bytes": 100, "reserved_bytes": 200, **others},
        )
    return GpuRow(
        stage=stage,
        system=system,
        setting=setting,
        model="opt-30b",
        requests=4,
        prompt_len=8,
        new_tokens=2,
        cap_bytes=1000,
        outcome=outcome,
        unfinished=late,
    )


ROWS = [
    row(OURS, "w4", 2.0, reserved_bytes=900, predicted_s=1.5),
    row(OURS, "w4-kv4", 1.0, reserved_bytes=500, decode_to_device_bytes=25 * 10**8),
    row(UPSTREAM, "one", 10.0),
    row(UPSTREAM, "other", 5.0),
    row(OURS, SHARED, 3.0, stage=HELM),
    row(OURS, PADDED, 30.0, stage=HELM),
]


def test_ratios_are_of_the_best_of_each():
    rate = HARDWARE.host_to_device_bytes_per_s
    assert gpu.ratios(ROWS, HARDWARE) == {
        "opt-30b_over_flexgen": 5.0,
        "helm_over_padded": 10.0,
        "most_reserved_over_cap": 0.9,
        "most_link_over_measured": round(5e9 / rate, 3),
        "worst_prediction_error": 0.25,
    }
    assert gpu.ratios([], HARDWARE) == {}


def test_a_peer_is_not_judged_by_what_it_was_given_no_time_for():
    name = "opt-30b_over_flexgen"
    assert name not in gpu.ratios([*ROWS, row(UPSTREAM, "third", late=True)], HARDWARE)
    assert gpu.ratios([*ROWS, row(UPSTREAM, "does not fit")], HARDWARE)[name] == 5.0


CAPS = {"none": 60_000_000, "w4-kv4": 50_000_000}
"""Bytes of the device for a small model, 33.6 MB of them for cuBLAS."""

REQUESTS = Requests(name="8/3", count=2, shared=4, least_own=3, most_own=5, new_tokens=3)


def trial(system, **changes):
    return GpuTrial(
        **{
            "stage": THROUGHPUT,
            "system": system,
            "setting": "x",
            "model": "125m",
            "requests": [REQUESTS],
            "cap_bytes": 4 * 10**9,
            "compression": "w4-kv4",
            **changes,
        }
    )


@pytest.fixture
def session(tmp_path):
    def make(limit_s=300.0):
        said = []
        made = GpuSession(
            EMBEDDED_CHECKPOINT, tmp_path, device="cpu", limit_s=limit_s, announce=said.append
        )
        made.said, made.directory = said, tmp_path
        return made

    return make


def test_ours_and_accelerate_run_in_processes_of_their_own(session):
    session = session()
    hardware = typical_hardware(unified=True, dtype=resolve_dtype("auto", "cpu"))
    ours = session.run(trial(OURS), hardware)
    assert (ours.model, ours.requests, ours.prompt_len) == ("opt-125m", 2, 8)
    assert 2 <= ours.outcome.generated_tokens <= 6
    assert ours.outcome.predicted_s > 0
    assert "weights 100/0/0, cache 100/0/0" in ours.outcome.policy
    same_lengths = Requests(name="8/5", count=2, shared=0, least_own=8, most_own=8, new_tokens=5)
    theirs = session.run(trial(ACCELERATE, requests=[same_lengths]), hardware)
    assert theirs.outcome.generated_tokens == 10
    assert theirs.outcome.tokens_per_s > 0
    assert len([text for text in session.said if "token/s" in text]) == 2
    rows = (session.directory / gpu_session.ROWS_FILE).read_text().splitlines()
    assert [json.loads(row)["system"] for row in rows] == [OURS, ACCELERATE]


@pytest.mark.parametrize("compression", ["none", "w4-kv4"])
def test_sub_scenarios_one_after_another_on_a_small_card(cuda, compression, tmp_path, capsys):
    """Planned, warmed up and run as on a GPU, without memory for all that could be on it."""
    directory = tmp_path / "checkpoint"
    save_random_checkpoint(
        directory, byte_tokenizer(), hidden_size=256, num_hidden_layers=6, ffn_dim=1024
    )
    kinds = [REQUESTS, replace(REQUESTS, name="8/2", count=5, new_tokens=2)]
    for in_turn in (False, True):
        asked = trial(
            OURS,
            requests=kinds,
            in_turn=in_turn,
            compression=compression,
            cap_bytes=CAPS[compression],
        )
        gpu_process.main(
            json.dumps(
                {
                    "trial": asdict(asked),
                    "checkpoint": str(directory),
                    "directory": str(tmp_path),
                    "device": "cuda",
                    "hardware": HARDWARE.to_json(),
                }
            )
        )
        outcome = GpuOutcome(**json.loads(capsys.readouterr().out))
        assert 0 < outcome.allocated_bytes <= CAPS[compression]
        assert outcome.decode_to_device_bytes > 0
        assert 7 <= outcome.generated_tokens <= 2 * 3 + 5 * 2


def test_what_fails_or_has_no_time_is_a_row_without_figures(session, monkeypatch):
    failed = session().run(trial("nobody"), HARDWARE)
    assert "status 1: the reason is in" in failed.problem
    assert (failed.outcome, failed.unfinished) == (None, False)
    too_late = session(limit_s=1.0).run(trial(OURS), HARDWARE)
    assert (too_late.problem, too_late.unfinished) == ("no time was left", True)
    monkeypatch.setattr(gpu_session, "ENOUGH_S", 0.0)
    late = session(limit_s=0.5).run(trial(OURS), HARDWARE)
    assert "did not end in 0 s" in late.problem
    assert late.unfinished
    monkeypatch.setattr(gpu_session, "ask", lambda *_, **__: None)
    assert session().run(trial(OURS), HARDWARE).problem == "was killed for want of memory"


def test_a_machine_that_is_not_measured_in_time_is_an_error(session):
    with pytest.raises(CommandError, match="rates did not end in 0 s: allow it more time"):
        session(limit_s=0.2).calibrate()


@pytest.mark.parametrize(
    ("new_tokens", "tokens", "costs", "decode_s"),
    [
        (3, (3, None), [2.0, 0.5, 0.5], 1.0),
        (32, (32, 8), [2.0, *[0.5] * 7], 32),  # as upstream projects it
    ],
)
def test_upstream_runs_with_our_cap_and_another_tokenizer(
    new_tokens, tokens, costs, decode_s, monkeypatch, capsys, tmp_path
):
    """Upstream's own program, stood in for by one that only looks at what it was given."""
    given = {}

    def run_flexgen(args):
        made = flex_opt.AutoTokenizer.from_pretrained("facebook/opt-30b", padding_side="left")
        given["ids"] = made(["Paris"], padding="max_length", max_length=args.prompt_len).input_ids
        given["model"], given["tokens"] = args.model, (args.gen_len, args.cut_gen_len)
        print("what upstream says")

    def add_parser_arguments(parser):
        for name in ("model", "path", "offload-dir", "log-file"):
            parser.add_argument(f"--{name}")
        parser.add_argument("--prompt-len", type=int)
        for name in ("gen-len", "cut-gen-len"):
            parser.add_argument(f"--{name}", type=int)

    flex_opt = SimpleNamespace(run_flexgen=run_flexgen, add_parser_arguments=add_parser_arguments)
    timer = SimpleNamespace(timers=lambda _: SimpleNamespace(costs=costs))
    utils = SimpleNamespace(project_decode_latency=lambda *given: given[2])
    for name, module in {
        "flexgen": SimpleNamespace(flex_opt=flex_opt),
        "flexgen.flex_opt": flex_opt,
        "flexgen.timer": timer,
        "flexgen.utils": utils,
    }.items():
        monkeypatch.setitem(upstream.sys.modules, name, module)
    capped = []
    monkeypatch.setattr(
        "flexgen_helm.runtime.device_cap.cap_device_memory", lambda *a: capped.append(a)
    )
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda _: 7)
    monkeypatch.setattr("torch.cuda.max_memory_reserved", lambda _: 8)
    monkeypatch.setattr("torch.cuda.memory_stats", lambda _: {"num_alloc_retries": 9})
    asked = trial(UPSTREAM, requests=[replace(REQUESTS, new_tokens=new_tokens)])
    asked = {"trial": asdict(asked), "directory": str(tmp_path), "device": "cuda:0"}
    upstream.main(json.dumps(asked))
    outcome = GpuOutcome(**json.loads(capsys.readouterr().out))
    assert (outcome.prefill_s, outcome.decode_s) == (2.0, decode_s)
    assert outcome.generated_tokens == 2 * new_tokens
    assert (outcome.allocated_bytes, outcome.reserved_bytes) == (7, 8)
    assert outcome.allocation_retries == 9
    assert [limit for _, limit in capped] == [4 * 10**9]
    assert given == {"ids": [[100] * 5], "model": "facebook/opt-125m", "tokens": tokens}


def test_the_command_reports_rates_trials_and_a_short_table(monkeypatch, tmp_path, capsys):
    hardware = typical_hardware(unified=True, dtype="bfloat16")
    monkeypatch.setattr(GpuSession, "calibrate", lambda _: hardware)
    monkeypatch.setattr(
        GpuSession,
        "run",
        lambda _, trial, __: row(trial.system, trial.setting, 2.0, stage=trial.stage),
    )
    arguments = ["--device", "cpu", "--peers", "accelerate", "--work-dir", str(tmp_path)]
    assert main(["bench", "gpu", *arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["conditions"]["cap"] == "16 GB"
    assert report["ratios"]["opt-30b_over_accelerate"] == 1.0
    assert "product_flop_per_s" in report["rows"][0]
    last = report["rows"][-1]
    assert last | {"seconds": 2.0, "setting": "weights on the host", "problem": None} == last
    assert main(["bench", "gpu", *arguments]) == 0
    assert "stage       model    system" in capsys.readouterr().out


def test_a_box_with_little_but_torch_and_transformers_is_enough():
    """Neither HELM nor the solver, nor what plots and reports are made with."""
    absent = ["helm", "cvxpy", "matplotlib", "jinja2", "datasets", "pyarrow", "statsmodels"]
    code = f"""
import sys
sys.modules.update(dict.fromkeys({absent}))
from flexgen_helm.bench import gpu_process, rates, upstream
from flexgen_helm.cli.main import build_parser
from flexgen_helm.runtime import calibration, engine
assert build_parser().parse_args(["bench", "gpu"]).models == ["30b", "6.7b"]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_a_gpu_the_command_says_what_to_do(capsys):
    assert main(["bench", "gpu", "--peers"]) == 2
    assert "finds no GPU here" in capsys.readouterr().err
