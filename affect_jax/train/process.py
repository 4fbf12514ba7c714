"""What a process sets before its first computation, so that it starts soon and runs fast."""

import ctypes
import os
import platform
from pathlib import Path

import jax

# glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
YNN_FUSIONS = "xla_cpu_experimental_ynn_fusion_type"


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
