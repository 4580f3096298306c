import subprocess
import sys

from flexgen_helm.child import child_environment


def test_a_child_imports_from_where_its_parent_does(tmp_path, monkeypatch):
    (tmp_path / "only_here.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    command = [sys.executable, "-c", "import only_here"]
    subprocess.run(command, env=child_environment(), check=True)
