"""The process of a trial of upstream FlexGen: reads it as JSON, prints a `GpuOutcome` as JSON.

Upstream's own program runs, with its options, on its dummy weights. Only its tokenizer is replaced,
which it would download, and the memory of the card is capped before.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from flexgen_helm.bench.gpu_process import peak_memory
from flexgen_helm.bench.gpu_trial import UPSTREAM_TOKENS, GpuOutcome

DUMMY = "_DUMMY_"
SOME_TOKEN = 100


class AnyTokenizer:
    """Makes a prompt of the length that is asked for, whatever the text."""

    add_bos_token = False

    @classmethod
    def from_pretrained(cls, *_: object, **__: object) -> AnyTokenizer:
        """Return one, without any file."""
        return cls()

    def __call__(self, texts: Sequence[str], *, max_length: int, **_: object) -> Any:
        return SimpleNamespace(input_ids=[[SOME_TOKEN] * max_length for _ in texts])


def options(trial: dict[str, Any], directory: Path) -> list[str]:
    """Return upstream's command line for a trial."""
    [requests] = trial["requests"]
    long = requests["new_tokens"] > UPSTREAM_TOKENS
    cut = ["--cut-gen-len", str(UPSTREAM_TOKENS)] if long else []
    return [
        *("--model", f"facebook/opt-{trial['model']}"),
        *("--path", DUMMY),
        *("--offload-dir", str(directory / "upstream")),
        *("--log-file", str(directory / "upstream.log")),
        *("--prompt-len", str(requests["most_own"])),
        *("--gen-len", str(requests["new_tokens"])),
        *cut,
        *trial["options"],
    ]


def main(request: str) -> None:
    """Carry out what a request asks for."""
    from flexgen import flex_opt
    from flexgen.timer import timers
    from flexgen.utils import project_decode_latency

    from flexgen_helm.model.dtypes import device_of
    from flexgen_helm.runtime.device_cap import cap_device_memory

    asked = json.loads(request)
    trial, device = asked["trial"], device_of(asked["device"])
    cap_device_memory(device, trial["cap_bytes"])
    flex_opt.AutoTokenizer = AnyTokenizer
    parser = argparse.ArgumentParser()
    flex_opt.add_parser_arguments(parser)
    (Path(asked["directory"]) / "upstream").mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(sys.stderr):
        flex_opt.run_flexgen(parser.parse_args(options(trial, Path(asked["directory"]))))
    first, *others = costs = timers("generate").costs
    [requests] = trial["requests"]
    prompt_len, new_tokens = requests["most_own"], requests["new_tokens"]
    whole = len(costs) == new_tokens
    outcome = GpuOutcome(
        prefill_s=first,
        decode_s=sum(others) if whole else project_decode_latency(costs, prompt_len, new_tokens),
        generated_tokens=requests["count"] * new_tokens,
        **peak_memory(device),
        policy=" ".join(trial["options"]),
    )
    print(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except BaseException:
        # Upstream's threads would keep the process alive.
        traceback.print_exc()
        os._exit(1)
