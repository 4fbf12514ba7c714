import sys

import pytest

from affect_jax.packages import require


def test_missing_packages_are_one_line_with_the_pip_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    require("numpy", purpose="this test")
    with pytest.raises(ImportError, match=r"^export needs onnx and no_such_package: pip install onnx no_such_package$"):
        require("numpy", "onnx", "no_such_package", purpose="export")
