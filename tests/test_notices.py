import subprocess
import sys
import warnings

import pytest

from flexgen_helm.notices import FlexGenWarning, one_line_warnings


def test_ours_are_one_line_each_and_others_as_ever(capsys):
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        with one_line_warnings():
            warnings.warn("memory is short", FlexGenWarning, stacklevel=1)
            warnings.warn("theirs", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "flexgen-helm: warning: memory is short\n"
    assert [str(warning.message) for warning in others] == ["theirs"]


def test_afterwards_they_are_warnings_like_any():
    with one_line_warnings():
        pass
    with pytest.warns(FlexGenWarning, match="memory is short"):
        warnings.warn("memory is short", FlexGenWarning, stacklevel=1)


def test_the_process_that_computes_shows_them_so_too():
    code = """
import warnings
from flexgen_helm.adapter import engine_server
from flexgen_helm.notices import FlexGenWarning

class Server:
    def __init__(self, connection): pass
    def run(self): warnings.warn("memory is short", FlexGenWarning)

engine_server._import_slow_modules = lambda: None
engine_server._end_with_parent = lambda: None
engine_server.Connection = lambda number: None
engine_server.EngineServer = Server
engine_server.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "0"], check=True, capture_output=True, text=True
    )
    assert done.stderr == "flexgen-helm: warning: memory is short\n"
