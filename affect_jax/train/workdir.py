"""What a run leaves behind: where each file is, whose run it is, and how it was made."""

import errno
import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from affect_jax.config import default_config
from affect_jax.files import write_atomically


class DataFacts(NamedTuple):
    """What a network's shape takes from its data."""

    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    """(H, W, C) of a classifier's pictures; () of a detector, whose pictures are of any size."""


class Workdir:
    """The folder of one run, and the names in it."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.lock = self.path / "run.lock"
        self.config = self.path / "config.json"
        self.history = self.path / "metrics.jsonl"
        self.metrics = self.path / "metrics.json"
        self.checkpoints = self.path / "checkpoints"
        self.predictions = self.path / "predictions"
        self.figures = self.path / "figures"
        self.report = self.path / "report.html"


@contextmanager
def only_run(workdir: Workdir) -> Iterator[None]:
    """Make the folder where it is not, and keep other runs out of it meanwhile; ValueError that names the one in it.

    The lock is the kernel's (flock, also over NFS), on a file that says who has it: it ends with its process, however
    that ends. Where the file system has no locks, that is said and the run goes on without. Process 0 holds it for all.
    """
    if jax.process_index() > 0:
        yield
        return
    workdir.path.mkdir(parents=True, exist_ok=True)
    with workdir.lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "another run"
            raise ValueError(
                f"{workdir.path} is in use by {holder}; wait for its end, or use another --workdir"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            print(f"{workdir.path} cannot be locked ({error.strerror}): start no second run in it", file=sys.stderr)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()} since {datetime.now():%Y-%m-%d %H:%M:%S}")
        file.flush()
        yield
        file.truncate(0)


def claim(workdir: Workdir, config: ConfigDict, data: DataFacts) -> None:
    """Make the folder this config's: write config.json, or ValueError where the one there says something else.

    Of several processes the first one writes and all compare: they have to see one folder and run one config.
    """
    wanted = json.loads(config.to_json())
    if jax.process_index() == 0 and not workdir.config.exists():
        workdir.path.mkdir(parents=True, exist_ok=True)
        record = {"config": wanted, "data": data._asdict(), "environment": environment()}
        write_atomically(workdir.config, json.dumps(record, indent=2))
    multihost_utils.sync_global_devices("config.json is written")
    if not workdir.config.exists():
        raise ValueError(
            f"process {jax.process_index()} does not see the {workdir.config} that process 0 sees; --workdir has to be"
            " a folder that all processes share"
        )
    found = json.loads(load_config(workdir).to_json())
    if differences := differing_fields(found, wanted):
        raise ValueError(
            f"{workdir.path} holds a run of another config; use another --workdir, or change back:\n"
            + "\n".join(f"  {name}: {old} there, {new} now" for name, old, new in differences)
        )


def load_config(workdir: Workdir) -> ConfigDict:
    """The config of the run in `workdir`; a field that is younger than the run has its default, which is off."""
    record = tuples(_read_record(workdir)["config"])
    config = default_config(record.get("task", "classification"))
    config.update(record)
    return config


def load_data_facts(workdir: Workdir) -> DataFacts:
    """What the run in `workdir` took from its data."""
    record = _read_record(workdir)
    if "data" not in record:
        raise ValueError(f"{workdir.config} is of an older version: it does not name the classes")
    return DataFacts(**tuples(record["data"]))


def load_environment(workdir: Workdir) -> dict[str, str]:
    """How the run in `workdir` was made."""
    return _read_record(workdir)["environment"]


def load_history(workdir: Workdir) -> list[dict]:
    """The records of metrics.jsonl, without one that is still being written; empty before the first."""
    lines = workdir.history.read_text().splitlines(keepends=True) if workdir.history.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def load_metrics(workdir: Workdir) -> dict[str, dict]:
    """The evaluations of the run by name, such as "val" and "test_tta_flip"; empty before the first."""
    return json.loads(workdir.metrics.read_text()) if workdir.metrics.exists() else {}


def environment() -> dict[str, str]:
    """Command, commit, versions, devices and XLA's flags of this process."""
    devices = jax.devices()
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": _commit(),
        "devices": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}), {_processor()}",
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def differing_fields(old: dict, new: dict, prefix: str = "") -> list[tuple[str, object, object]]:
    """(dotted name, old value, new value) wherever two nested dicts differ; "absent" stands for a missing field."""
    differences = []
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name, "absent"), new.get(name, "absent")
        if isinstance(a, dict) and isinstance(b, dict):
            differences += differing_fields(a, b, f"{prefix}{name}.")
        elif a != b:
            differences.append((prefix + name, a, b))
    return differences


def _read_record(workdir: Workdir) -> dict:
    if not workdir.config.exists():
        raise FileNotFoundError(f"{workdir.path} holds no run: there is no {workdir.config.name} in it")
    return json.loads(workdir.config.read_text())


def tuples(value):
    """JSON's lists as the tuples that configs hold."""
    if isinstance(value, dict):
        return {key: tuples(item) for key, item in value.items()}
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value


def _commit() -> str:
    """Commit of this source tree, "+changes" where files differ from it, "unknown" outside a repository."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    import os

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of {platform.machine()}"
