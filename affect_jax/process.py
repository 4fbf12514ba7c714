"""Set-up of a process before its first computation: XLA flags, memory, and joining other processes."""

import ctypes
import gc
import importlib.util
import mmap
import os
import platform
import re
import signal
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

import jax
import jaxlib.version
from absl import flags
from jax.experimental import multihost_utils

from affect_jax.command_line import handling
from affect_jax.files import cache_folder
from affect_jax.packages import is_installed

# option numbers of glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
MADV_HUGEPAGE = 14  # advice of Linux's mman.h
HUGE_PAGE = 2**21
"""Bytes of a huge page on x86-64 and on most ARM systems."""
HUGE_HEAP = 2**32
"""Bytes of the heap that are mapped with huge pages: more than a training step of a batch of 64 faces needs."""
YNN_FUSIONS = "xla_cpu_experimental_ynn_fusion_type"
OLDER_EMITTERS = {"xla_cpu_use_fusion_emitters": False} if jaxlib.version.__version_info__ < (0, 11, 1) else {}
"""Compiler options that choose XLA's older emitters on CPU, which compile faster; jaxlib 0.11.1 removed them."""
ACCELERATOR_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm60_plugin", "jax_rocm7_plugin", "libtpu")
NVIDIA_DEVICES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")
"""Files of which at least one exists on a machine with an NVIDIA GPU; JAX fails with an assertion without them."""
JOB_SIZES = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
"""Environment variables with the number of tasks of a job."""
READ_ERROR = re.compile("Error reading persistent compilation cache entry for '(.+?)'")
"""JAX's warning of an entry of its cache that it cannot read, with the name of the program."""
SHUTDOWN_SECONDS = 30
"""Longest time between the ends of two processes; after it JAX ends the remaining processes."""


def prepare_process(deterministic: bool = False) -> None:
    """Make JAX faster: cache programs, collect garbage rarely; on CPU, use faster operations and keep memory.

    Settings of the user are kept, except JAX_ENABLE_X64. With `deterministic`, a GPU computes the same bits in every
    run, but more slowly; CPUs and TPUs compute the same bits without it. Call this before the first use of a device.
    ValueError if JAX_PLATFORMS is "cuda" and there is no such GPU.
    """
    if jax.config.jax_platforms == "cuda" and not any(map(os.path.exists, NVIDIA_DEVICES)):
        raise ValueError("JAX_PLATFORMS=cuda, but no NVIDIA GPU is visible; unset it or set it to cpu")
    if jax.config.jax_enable_x64:
        print("JAX_ENABLE_X64 is switched off: the networks compute in 32 bits", file=sys.stderr)
        jax.config.update("jax_enable_x64", False)
    if deterministic:
        add_xla_flag("xla_gpu_deterministic_ops", "true")
    enable_compilation_cache()
    collect_garbage_rarely()
    prefer_fast_convolutions()
    prefer_wide_vectors()
    if can_keep_freed_memory():
        keep_freed_memory()
        use_huge_pages()
        run_in_calling_thread()


def enable_compilation_cache() -> None:
    """Cache compiled programs on disk, in JAX_COMPILATION_CACHE_DIR or in the user's cache folder.

    Programs that compile in less than 0.5 s are not cached, unless JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS is set.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    folder = jax.config.jax_compilation_cache_dir
    if folder and "://" not in folder:
        check_compilation_cache(Path(folder))
        replace_damaged_entries(Path(folder))


def check_compilation_cache(folder: Path) -> None:
    """Create the cache folder if it is absent.

    If it cannot be written, one line says so, and JAX is silent; if it cannot be created, there is no cache.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        remedy = "set JAX_COMPILATION_CACHE_DIR to a folder that can be written"
        print(f"compiled programs cannot be stored in {folder} ({error.strerror}); {remedy}", file=sys.stderr)
        warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry")
        if not folder.is_dir():
            jax.config.update("jax_compilation_cache_dir", None)


def replace_damaged_entries(folder: Path) -> None:
    """Let JAX write an entry of its cache again that it cannot read, without a warning.

    Entries are damaged if their process ended, or the disk was full, while they were written. JAX keeps them, and would
    warn and compile their programs in every process.
    """
    show = warnings.showwarning

    def remove_or_show(message, *details, **options):
        if program := READ_ERROR.match(str(message)):
            with suppress(OSError):
                for entry in folder.glob(f"{program[1]}-*-cache"):  # JAX does not say which of them
                    entry.unlink(missing_ok=True)
        else:
            show(message, *details, **options)

    warnings.showwarning = remove_or_show


def collect_garbage_rarely() -> None:
    """Run garbage collection rarely and exclude imported objects: by default it takes a fifth of tracing's time."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def prefer_fast_convolutions() -> None:
    """Let XLA compute CPU convolutions with Eigen: YNNPACK, jaxlib 0.10's default, takes up to twice as long."""
    add_xla_flag(YNN_FUSIONS, "-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION")


def prefer_wide_vectors() -> None:
    """Let XLA use vectors of 512 bits on CPUs that have them; its default is 256.

    Training steps of VGG-FER and of MobileNetV2 at 96 pixels are 1.01 and 1.04 times as fast.
    """
    add_xla_flag("xla_cpu_prefer_vector_width", "512")


def add_xla_flag(name: str, value: str) -> None:
    """Set an XLA flag that the user has not set and that this jaxlib has: XLA aborts the process on an unknown flag.

    XLA reads its flags at the first use of a device.
    """
    xla_flags = os.environ.get("XLA_FLAGS", "")
    if name not in xla_flags and has_xla_flag(name):
        os.environ["XLA_FLAGS"] = f"{xla_flags} --{name}={value}".strip()


def has_xla_flag(name: str) -> bool:
    """Return True if jaxlib's library contains the name of the flag as a C string; jaxlib cannot list its flags."""
    spec = importlib.util.find_spec("jaxlib")
    for library in Path(spec.origin).parent.glob("libjax_common.*"):
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(name.encode() + b"\0") >= 0:
                return True
    return False


def has_accelerator_plugin() -> bool:
    """Return True if a plugin of JAX for GPU or TPU is installed, without starting a device."""
    return any(map(is_installed, ACCELERATOR_PLUGINS))


def can_keep_freed_memory() -> bool:
    """Return True if glibc allocates the memory and no GPU or TPU is used, whose drivers share the allocator."""
    return platform.libc_ver()[0] == "glibc" and not has_accelerator_plugin()


def keep_freed_memory() -> None:
    """Let glibc reuse freed memory instead of returning it to the system; see `can_keep_freed_memory`.

    Without this every step faults in its activations page by page: 120,000 page faults for a step of VGG-FER with batch
    64 on two cores. Arrays of more than 64 MiB are kept only if the main thread allocates them.
    """
    libc = ctypes.CDLL(None)
    for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)):
        libc.mallopt(option, value)


def use_huge_pages() -> None:
    """Let Linux map the arrays that the main thread allocates with huge pages, if they are not switched off.

    The heap is extended by HUGE_HEAP bytes, which glibc keeps because of `keep_freed_memory`; unused bytes take no
    memory. Without enough address space nothing changes. Training steps are up to 1.04 times as fast.
    """
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    start = libc.malloc(ctypes.c_size_t(HUGE_HEAP))
    if start is not None:
        first_page = -(-start // HUGE_PAGE) * HUGE_PAGE
        libc.madvise(ctypes.c_void_p(first_page), ctypes.c_size_t(HUGE_HEAP - HUGE_PAGE), MADV_HUGEPAGE)
        libc.free(ctypes.c_void_p(start))


def run_in_calling_thread() -> None:
    """Let JAX run CPU programs in the thread that calls them, unless the user set JAX_CPU_ENABLE_ASYNC_DISPATCH.

    Called from the main thread, programs then allocate arrays that `keep_freed_memory` keeps. Allocating for all
    threads as for the main thread would keep them too, but XLA's compiler threads would wait for each other: compiling
    a step of VGG-FER took 1.5 times as long.
    """
    if "JAX_CPU_ENABLE_ASYNC_DISPATCH" not in os.environ:
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def define_process_flags() -> tuple[flags.FlagHolder, ...]:
    """Define the flags of a script that can run as several processes: the arguments of join_processes."""
    return (
        flags.DEFINE_string(
            "coordinator_address", None, "Several processes on a plain cluster: HOST:PORT on which process 0 listens."
        ),
        flags.DEFINE_integer("num_processes", None, "Number of processes; 1 ignores the cluster."),
        flags.DEFINE_integer("process_id", None, "Number of this process, from 0."),
    )


def join_processes(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Join the processes that run the same command; do nothing if there is only this one.

    The processes are those of the arguments or, without arguments, the tasks of the SLURM or Open MPI job, the workers
    of the TPU pod or the pods of the Kubernetes job, as JAX finds them. A process that fails ends the others:
    SHUTDOWN_SECONDS after its message, or when it has not answered for 100 s. ValueError if arguments are missing.
    """
    arguments = coordinator_address, num_processes, process_id
    options = {"shutdown_timeout_seconds": SHUTDOWN_SECONDS}
    if num_processes == 1:
        return
    if arguments == (None, None, None):
        # In a job of one task, initialize() would hide all GPUs but one.
        if any(os.environ.get(name) == "1" for name in JOB_SIZES):
            return
        try:
            jax.distributed.initialize(**options)
        except ValueError as error:
            if "coordinator_address" in str(error):  # JAX found no cluster
                return
            raise
    elif None in arguments:
        raise ValueError("--coordinator_address, --num_processes and --process_id go together: give all three or none")
    else:
        host, _, port = coordinator_address.rpartition(":")
        if not (host and port.isdecimal()):
            raise ValueError(f"--coordinator_address={coordinator_address}; it must be HOST:PORT")
        print(f"process {process_id} of {num_processes}: waiting for the others at {coordinator_address}", flush=True)
        with handling(signal.SIGINT, signal.SIG_DFL):  # the wait is not in Python, which could not end it
            jax.distributed.initialize(*arguments, **options)
    multihost_utils.sync_global_devices("all processes are running")  # a later first meeting on CPU waits only 30 s
