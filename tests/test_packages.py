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
