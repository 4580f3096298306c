import pytest

from flexgen_helm.adapter.needs import require_checkpoints, require_data
from flexgen_helm.errors import CheckpointError, StagingError
from flexgen_helm.plugin import generate_deployment

MMLU = "mmlu:subject={subject},method=multiple_choice_joint,model=flexgen_opt"


def nothing(url):
    return False


def everything(url):
    return True


def nobody(url):
    raise AssertionError("nothing is missing")


@pytest.fixture
def anatomy(tmp_path):
    for split in ("dev", "test"):
        file = tmp_path / "scenarios" / "mmlu" / "data" / split / f"anatomy_{split}.csv"
        file.parent.mkdir(parents=True)
        file.touch()
    return tmp_path


def test_nobody_is_asked_where_nothing_is_missing(anatomy):
    runs = [MMLU.format(subject="anatomy"), "dyck_language_np=3:model=m", "unknown:model=m"]
    require_data(runs, anatomy, nobody)


def test_what_is_missing_and_cannot_be_had_is_one_line(anatomy):
    runs = [*(MMLU.format(subject=s) for s in ("anatomy", "virology")), "gsm:model=m"]
    with pytest.raises(StagingError) as raised:
        require_data(runs, anatomy, nothing)
    [line] = str(raised.value).splitlines()
    assert "mmlu: data/dev/virology_dev.csv, data/test/virology_test.csv; gsm: gsm_data_tr" in line
    assert "people.eecs.berkeley.edu, raw.githubusercontent.com cannot be reached" in line
    assert f"run flexgen-helm stage mmlu gsm -o {anatomy} --from hub on a machine with" in line


def test_what_helm_can_download_is_left_to_it(anatomy):
    require_data(["gsm:model=m"], anatomy, everything)
    with pytest.raises(StagingError, match="stage gsm -o"):
        require_data(
            ["gsm:model=m", "boolq:model=m"], anatomy, lambda url: url == "https://huggingface.co"
        )


def test_a_checkpoint_of_a_hub_out_of_reach(checkpoint):
    generate_deployment("flexgen/nobody/has-this")
    with pytest.raises(
        CheckpointError, match=r"nobody/has-this of the hub has not .*: run hf download nobody/has-"
    ):
        require_checkpoints(["flexgen/nobody/has-this"], nothing)
    generate_deployment(f"flexgen/{checkpoint}")
    require_checkpoints([f"flexgen/{checkpoint}", "flexgen/opt-embedded-w4"], nobody)


def test_a_checkpoint_that_was_fetched_before(monkeypatch):
    generate_deployment("flexgen/nobody/has-this")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: "/cache/config.json")
    require_checkpoints(["flexgen/nobody/has-this"], nobody)


def test_the_hub_is_not_asked_where_it_must_not_be(monkeypatch):
    generate_deployment("flexgen/nobody/has-this")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError):
        require_checkpoints(["flexgen/nobody/has-this"], nobody)
