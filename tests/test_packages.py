import sys

import pytest

from affect_jax.command_line import one_line_errors
from affect_jax.packages import require


def test_missing_packages_are_one_line_with_the_pip_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    require("numpy", purpose="this test")
    message = "^ImportError: export needs onnx and nothing: pip install onnx nothing$"
    with pytest.raises(SystemExit, match=message), one_line_errors():
        require("numpy", "onnx", "nothing", purpose="export")


@pytest.mark.parametrize("error", [ValueError("wrong"), FileNotFoundError("absent"), ChildProcessError("failed")])
def test_errors_of_values_and_files_are_one_line(error):
    with pytest.raises(SystemExit, match=f"^{type(error).__name__}: {error}$"), one_line_errors():
        raise error


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), one_line_errors():
        _ = 1 / 0
