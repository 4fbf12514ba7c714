"""Devices: the mesh a step runs over, arrays onto it, and the cache of compiled steps."""

import os
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def data_mesh() -> Mesh:
    """All devices of all processes in one axis "data", over which batches are split."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_over_devices(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Axis number `axis` of an array split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def to_devices(arrays: Mapping[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """Each process' part of the arrays as global arrays laid out by `sharding`."""
    return {key: jax.make_array_from_process_local_data(sharding, array) for key, array in arrays.items()}


def enable_compilation_cache() -> None:
    """Keep compiled steps on disk, so that a second run starts at once; JAX_COMPILATION_CACHE_DIR says elsewhere."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(cache / "affect_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
