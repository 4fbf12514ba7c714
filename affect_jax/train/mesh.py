"""Meshes of devices, and the placement of arrays on them."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def data_mesh() -> Mesh:
    """Return a mesh of all devices of all processes with one axis "data"; the devices of a process are adjacent."""
    # JAX's own orders may interleave the devices of two processes; pipeline.process_rows needs them adjacent.
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def one_device() -> Mesh:
    """Return a mesh of the first device, for batches of any size."""
    return Mesh(jax.devices()[:1], ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that every device holds completely."""
    return NamedSharding(mesh, PartitionSpec())


def split_over_devices(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Return the sharding that splits `axis` over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def to_devices(arrays: Mapping[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """Return global arrays with this sharding from each process's part of them."""
    return {key: jax.make_array_from_process_local_data(sharding, array) for key, array in arrays.items()}
