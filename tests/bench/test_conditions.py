import json
import subprocess
from datetime import datetime, timezone

from flexgen_helm import __version__
from flexgen_helm.bench.conditions import commit, machine_conditions, version

NOW = datetime(2026, 7, 1, 12, 30, 15, 999, tzinfo=timezone.utc)


def test_conditions_name_machine_and_software():
    conditions = machine_conditions(NOW)
    assert conditions["date"] == "2026-07-01T12:30:15+00:00"
    assert conditions["cores"] >= 1
    assert conditions["memory_bytes"] > 10**8
    assert conditions["load_average"] >= 0
    assert conditions["flexgen_helm"] == __version__
    known = {"cpu", "os", "python", "torch", "transformers", "crfm-helm"}
    assert all(conditions[name] for name in known)
    json.dumps(conditions)


def test_a_distribution_that_is_not_installed_has_no_version():
    assert version("no-such-distribution") is None


def test_commit(tmp_path):
    assert commit(tmp_path) is None

    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True)

    git("init", "--quiet")
    assert commit(tmp_path) is None  # nothing is committed yet
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "--quiet", "--message", "m")
    clean = commit(tmp_path)
    assert len(clean) >= 7
    (tmp_path / "file").write_text("b")
    assert commit(tmp_path) == f"{clean}-dirty"
