"""Compile the programs of several networks at the same time."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from affect_jax.tasks.interface import PredictFn

COMPILING = ThreadPoolExecutor(max_workers=2, thread_name_prefix="compile")
"""XLA compiles outside Python's lock, so two threads use two cores."""

Shapes = Mapping[str, jax.ShapeDtypeStruct]


class Programs:
    """Callable that runs a jitted prediction; a program for each shape of the inputs is compiled once, in a thread."""

    def __init__(self, predict: PredictFn, variables: dict):
        self._predict, self._variables = predict, variables
        self._compiled: dict[Any, Future] = {}

    def prepare(self, shapes: Shapes) -> Future:
        """Begin to compile the program for inputs of these shapes, if that was not done before; do not wait for it."""
        key = tuple(sorted((name, value.shape) for name, value in shapes.items()))
        if key not in self._compiled:
            self._compiled[key] = COMPILING.submit(self._compile, shapes)
        return self._compiled[key]

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return the outputs, still on the device."""
        shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in inputs.items()}
        return self.prepare(shapes).result()(self._variables, inputs)

    def _compile(self, shapes: Shapes):
        return self._predict.lower(self._variables, dict(shapes)).compile()
