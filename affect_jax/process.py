"""What a process does before its first computation: settings to start soon and run fast, and joining the others."""

import ctypes
import os
import platform
from pathlib import Path

import jax
from absl import flags
from jax.experimental import multihost_utils

# glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
YNN_FUSIONS = "xla_cpu_experimental_ynn_fusion_type"
SECONDS_TO_LEAVE = 30
"""How far apart processes may end: past it one has failed, and JAX ends the others, whatever they wait for."""


def prepare_process(deterministic: bool = False) -> None:
    """Keep compiled steps on disk, and on CPU freed memory and XLA's faster convolutions; what the user set stays.

    `deterministic` has a GPU give the same bits each time, as CPU and TPU do, at the price of speed.
    """
    if deterministic:
        add_xla_flag("xla_gpu_deterministic_ops", "true")
    enable_compilation_cache()
    prefer_fast_convolutions()
    keep_freed_memory()


def enable_compilation_cache() -> None:
    """Keep compiled steps on disk, so that a second run starts at once; JAX_COMPILATION_CACHE_DIR says elsewhere."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(cache / "affect_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def prefer_fast_convolutions() -> None:
    """Have XLA leave CPU's convolutions to Eigen: in jaxlib 0.10 the library it prefers takes up to twice as long."""
    add_xla_flag(YNN_FUSIONS, "-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION")


def add_xla_flag(name: str, value: str) -> None:
    """Set a flag of XLA's that the user has not; works until XLA reads its flags, at the first use of a device."""
    flags = os.environ.get("XLA_FLAGS", "")
    if name not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{name}={value}".strip()


def keep_freed_memory() -> None:
    """Have glibc reuse freed memory instead of returning it: else each step faults its activations in page by page.

    For threads that start afterwards. A VGG-FER step of batch 64 on two cores took 120,000 page faults without it.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1)):
            libc.mallopt(option, value)


def define_process_flags() -> tuple[flags.FlagHolder, ...]:
    """The flags of a script that may run as several processes: the arguments of join_processes."""
    return (
        flags.DEFINE_string(
            "coordinator_address", None, "Several processes on a plain cluster: HOST:PORT that process 0 listens on."
        ),
        flags.DEFINE_integer("num_processes", None, "How many they are; 1 alone: not several, on no cluster."),
        flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0."),
    )


def join_processes(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Make this process one of several that run the same command; nothing on a machine of its own.

    They are those that the arguments name or, without, the tasks of the SLURM or Open MPI job, the workers of the TPU
    pod or the pods of the Kubernetes job that JAX finds itself in. From then on a process that fails takes the others
    with it: SECONDS_TO_LEAVE after its message, or when it has not been heard of for 100 s. ValueError where the
    arguments are not complete.
    """
    given = coordinator_address, num_processes, process_id
    if num_processes == 1 or (given == (None, None, None) and cluster_size() == 1):
        return
    if None in given and given != (None, None, None):
        raise ValueError("--coordinator_address, --num_processes and --process_id go together: give all three or none")
    jax.distributed.initialize(*given, shutdown_timeout_seconds=SECONDS_TO_LEAVE)
    multihost_utils.sync_global_devices("all are here")  # at their first meeting processes on CPU wait but 30 s


def cluster_size() -> int:
    """How many processes the cluster that JAX finds itself in has started; 1 where it finds none."""
    # JAX has no public word for this, and initialize() alone would hide all GPUs but one from a SLURM job of one task
    from jax._src.clusters import ClusterEnv

    present = (env for env in ClusterEnv._cluster_types if not env.opt_in_only_method and env.is_env_present())
    cluster = next(present, None)
    return 1 if cluster is None else cluster.get_process_count()
