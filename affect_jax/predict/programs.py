"""Compile the programs of several networks at the same time, and keep what was traced for later processes.

Python traces a network to StableHLO, and XLA compiles that. Both results are stored in JAX's cache folder: the first by
`traced`, the second by JAX.
"""

import functools
import hashlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

import jax
import numpy as np
from absl import logging
from jax import export

import affect_jax
from affect_jax.files import whole_file
from affect_jax.process import OLDER_EMITTERS
from affect_jax.tasks.interface import PredictFn

COMPILING = ThreadPoolExecutor(max_workers=4, thread_name_prefix="compile")
"""XLA compiles outside Python's lock, so threads use several cores. An image needs up to four programs."""
TRACING = Lock()
"""Tracing needs Python's lock; in turns, the first program is compiled while the second is traced."""
QUICK = {"xla_cpu_parallel_codegen_split_count": 1, "xla_backend_optimization_level": 1, **OLDER_EMITTERS}
"""Options with which XLA compiles networks faster on CPU; they run as fast.

The older emitters take four fifths of the time, and so do fewer optimizations by LLVM. Programs are compiled side by
side, and then it takes less time in all to compile each as a whole than in parts.
"""
FOR_MANY = {"xla_cpu_parallel_codegen_split_count": 1, "xla_cpu_prefer_vector_width": 512}
"""Options for a program that is called many times, such as that of a video: it takes a tenth less time.

The newer emitters and, on processors with AVX-512, vectors of 512 bits give half of it each.
"""
COMPILES = "/affect_jax/predict/compiles"
"""Event of jax.monitoring before a network is traced and compiled that is not in the cache folder."""

Shapes = Mapping[str, jax.ShapeDtypeStruct]


class Programs:
    """Callable that runs a jitted prediction; a program for each shape of the inputs is compiled once, in a thread.

    `description` is all that the prediction was made from except the code and the shapes, as text.
    """

    def __init__(self, predict: PredictFn, variables: dict, description: str):
        self._predict, self._variables, self._description = predict, variables, description
        self._compiled: dict[Any, Future] = {}

    def prepare(self, shapes: Shapes, for_many: bool = False) -> Future:
        """Begin to compile the program for inputs of these shapes, if that was not done before; do not wait for it.

        With `for_many`, the program runs faster on CPU and compiles more slowly.
        """
        key = tuple(sorted((name, value.shape) for name, value in shapes.items()))
        if key not in self._compiled:
            self._compiled[key] = COMPILING.submit(self._compile, shapes, FOR_MANY if for_many else QUICK)
        return self._compiled[key]

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return the outputs, still on the device."""
        shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in inputs.items()}
        return self.prepare(shapes).result()(self._variables, inputs)

    def _compile(self, shapes: Shapes, options_on_cpu: Mapping[str, Any]):
        arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (self._variables, dict(shapes)))
        with TRACING:
            program = traced(self._predict, arguments, self._description)
            lowered = jax.jit(program.call).lower(*arguments)
        return lowered.compile(compiler_options=options_on_cpu if jax.default_backend() == "cpu" else None)


def traced(predict: PredictFn, arguments: tuple, description: str) -> export.Exported:
    """Return the StableHLO of `predict` for arguments of these shapes, from JAX's cache folder if it is there."""
    folder = jax.config.jax_compilation_cache_dir
    if not folder or "://" in folder:
        jax.monitoring.record_event(COMPILES)
        return export.export(predict)(*arguments)
    key = hashlib.sha256("\n".join((description, str(arguments), code_and_versions())).encode()).hexdigest()
    file = Path(folder) / f"{key}.stablehlo"
    if (stored := _read(file)) is not None:
        return stored
    jax.monitoring.record_event(COMPILES)
    program = export.export(predict)(*arguments)
    with suppress(OSError):  # without the file, the next start takes longer
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as new:
            new.write(program.serialize())
    return program


def _read(file: Path) -> export.Exported | None:
    """Return the program in `file`, or None if there is none or the file is damaged."""
    try:
        return export.deserialize(bytearray(file.read_bytes()))
    except OSError:
        return None
    except Exception as error:  # damage raises errors of many types
        logging.warning("%s is damaged and is written again: %s", file, error)
        return None


@functools.cache
def code_and_versions() -> str:
    """Return a text that changes with the device, the versions and settings of JAX, and the code of this package."""
    code = hashlib.sha256()
    for file in sorted(Path(affect_jax.__file__).parent.rglob("*.py")):
        code.update(file.read_bytes())
    versions = {name: version(name) for name in ("flax", "jax")}
    return f"{jax.default_backend()} {versions} {sorted(jax.config.values.items())} {code.hexdigest()}"
