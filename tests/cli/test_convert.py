import pytest

from flexgen_helm import Engine, GenerationRequest, Policy, SamplingParams
from flexgen_helm.cli.main import main
from flexgen_helm.specs.opt_sizes import SIZES
from flexgen_helm.specs.placement import Placement


def lines(capsys):
    return dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())


def test_a_checkpoint_becomes_a_store_that_the_engine_finds(checkpoint, tmp_path, capsys):
    arguments = ["--offload-dir", str(tmp_path), "--weight-bits", "4", "--dtype", "float32"]
    assert main(["convert", str(checkpoint), *arguments]) == 0
    printed = lines(capsys)
    assert printed["checkpoint"] == str(checkpoint)
    assert printed["store"].startswith(str(tmp_path))
    assert printed["size"].endswith("kB")


def test_a_dummy_is_run_like_any_checkpoint(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SIZES, "125m", (2, 64, 4))
    arguments = ["--dummy", "--tokenizer", str(checkpoint), "--offload-dir", str(tmp_path)]
    assert main(["convert", "opt-125m", *arguments, "--dtype", "float32"]) == 0
    path = lines(capsys)["checkpoint"]
    request = GenerationRequest(prompt_token_ids=[2, 9, 9], sampling=SamplingParams(max_tokens=5))
    results = []
    for policy in (Policy(), Policy(weights=Placement(disk=1))):
        with Engine.from_pretrained(
            path, dtype="float32", policy=policy, offload_dir=tmp_path
        ) as engine:
            results.append(engine.generate([request])[0].completions[0])
    assert results[0].token_ids == results[1].token_ids


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["opt-125m"], "--dummy needs a tokenizer"),
        (["opt-9b", "--tokenizer", "."], "there is no OPT of size 'opt-9b': choose one of opt-1"),
        (["opt-125m", "--tokenizer", "tests"], "tests has no tokenizer: name a directory"),
    ],
)
def test_dummies_that_cannot_be_made(arguments, message, tmp_path, capsys):
    assert main(["convert", *arguments, "--dummy", "--offload-dir", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_dummy_that_cannot_be_written(checkpoint, tmp_path, capsys):
    (tmp_path / "file").touch()
    arguments = ["--dummy", "--tokenizer", str(checkpoint)]
    assert main(["convert", "opt-125m", *arguments, "--offload-dir", str(tmp_path / "file")]) == 2
    assert "dummy-opt-125m cannot be written (Not a directory): choose another --offload-dir" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weight-bits", "5"], "weight_bits=5 is not supported"),
        (["--group-size", "5"], "group_size=5 is not supported"),
        (["--dtype", "float8"], "dtype='float8' is not supported"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_a_conversion_begins(
    checkpoint, tmp_path, capsys, arguments, message
):
    command = ["convert", str(checkpoint), "--offload-dir", str(tmp_path), *arguments]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert "converting" not in error
