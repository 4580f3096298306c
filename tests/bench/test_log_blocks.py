import pytest

from flexgen_helm.bench.log_blocks import EXECUTION, block_seconds


def log(*messages):
    """Lines as HELM writes them."""
    return [f"2026-11-23 14:11:06,317 INFO     {message}\n" for message in messages]


@pytest.mark.parametrize(
    ("end", "seconds"), [("0s", 0), ("2.875s", 2.875), ("3m0.5s", 180.5), ("1h2m3.25s", 3723.25)]
)
def test_duration(end, seconds):
    lines = log("  Executor.execute {", f"  }} [{end}]")
    assert block_seconds(lines, EXECUTION) == [seconds]


def test_ours_and_helms_blocks_count_once():
    lines = log(
        "helm_run {",
        "  Gathering the requests of mmlu {",
        "  } [7s]",
        "  Computing the requests of flexgen/opt-30b {",
        "    HookedExecutor.execute {",
        "    } [2s]",
        "    } and what looks like an end",
        "  } [3s]",
        "  Running mmlu {",
        "    HookedExecutor.execute {",
        "      Parallelizing computation on 2 items over 4 threads {",
        "      } [0.5s]",
        "    } [0.5s]",
        "    AnnotationExecutor.execute {",
        "    } [9s]",
        "  } [11s]",
        "} [30s]",
    )
    assert block_seconds(lines, EXECUTION) == [3, 0.5]


def test_what_others_write_in_between_is_passed_over():
    lines = log("Executor.execute {", "} [1s]")
    assert block_seconds([lines[0], "  } [5s]\n", "Executor.execute {\n", lines[1]], EXECUTION) == [
        1
    ]


def test_a_block_that_does_not_end_has_no_duration():
    assert block_seconds(log("Executor.execute {"), EXECUTION) == []
