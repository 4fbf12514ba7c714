"""Devices: the mesh a step runs over, and arrays onto it."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def data_mesh() -> Mesh:
    """All devices of all processes in one axis "data", over which batches are split; a process' stand together."""
    # JAX's own orders may put devices of two processes in turns, as they lie in a TPU's grid: see process_rows
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def one_device() -> Mesh:
    """A mesh of the first device alone: a batch of any size fits it."""
    return Mesh(jax.devices()[:1], ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_over_devices(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Axis number `axis` of an array split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def to_devices(arrays: Mapping[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """Each process' part of the arrays as global arrays laid out by `sharding`."""
    return {key: jax.make_array_from_process_local_data(sharding, array) for key, array in arrays.items()}


def process_rows(batch_size: int) -> slice:
    """This process' rows of a batch."""
    rows = batch_size // jax.process_count()
    return slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)
