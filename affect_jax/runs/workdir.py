"""The folder of a run: its files, its lock, and the record of how the run was made."""

import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from affect_jax import files
from affect_jax.config import default_config, differing_fields
from affect_jax.config_checks import validate_for_use
from affect_jax.data.identity import SplitIdentity, difference
from affect_jax.tasks.interface import DataFacts
from affect_jax.train.writers import read_records


class Workdir:
    """Paths in the folder of a run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.lock = self.path / "run.lock"
        self.config = self.path / "config.json"
        self.history = self.path / "metrics.jsonl"
        self.metrics = self.path / "metrics.json"
        self.metrics_lock = self.path / "metrics.lock"
        self.checkpoints = self.path / "checkpoints"
        self.predictions = self.path / "predictions"
        self.figures = self.path / "figures"
        self.report = self.path / "report.html"

    def predictions_file(self, name: str) -> Path:
        """Return the path of the predictions of the evaluation `name`."""
        return self.predictions / f"{name}.npz"


@contextmanager
def locked(workdir: Workdir) -> Iterator[None]:
    """Create the folder and lock it for one run; ValueError that names the process that holds the lock.

    Process 0 holds the lock for all processes.
    """
    if jax.process_index() > 0:
        yield
        return
    workdir.path.mkdir(parents=True, exist_ok=True)
    with files.locked(workdir.lock, "wait until it ends, or use another --workdir"):
        yield


def check_place(path: Path) -> None:
    """Raise ValueError if no folder can be created at `path`.

    An existing folder is accepted even if it cannot be written, because the first write to it reports the cause,
    such as a read-only disk.
    """
    nearest = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise ValueError(f"{nearest} is a file; a run needs a folder")
    if not path.exists() and not os.access(nearest, os.W_OK):
        raise ValueError(f"{nearest} is not writable; choose another folder for the run")


def claim(
    workdir: Workdir,
    config: ConfigDict,
    data: DataFacts,
    splits: Mapping[str, SplitIdentity],
    teachers: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write config.json, or raise ValueError if the folder has the config of another run or a run on other data.

    `teachers` has the fingerprint of each teacher's weights; those of the run must be the same. Process 0 writes and
    all processes compare: they must share one folder and run one config.
    """
    wanted = json.loads(config.to_json())
    if jax.process_index() == 0 and not workdir.config.exists():
        workdir.path.mkdir(parents=True, exist_ok=True)
        record = {
            "config": wanted,
            "data": data._asdict(),
            "splits": {name: split._asdict() for name, split in splits.items()},
            "teachers": dict(teachers),
            "environment": environment(),
        }
        files.write_atomically(workdir.config, json.dumps(record, indent=2))
    multihost_utils.sync_global_devices("config.json is written")
    if not workdir.config.exists():
        raise ValueError(
            f"process {jax.process_index()} cannot see the {workdir.config} of process 0; --workdir must be a folder"
            " that all processes share"
        )
    found = json.loads(load_config(workdir).to_json())
    if differences := differing_fields(found, wanted):
        raise ValueError(
            f"{workdir.path} holds a run with another config; use another --workdir, or restore these fields:\n"
            + "\n".join(f"  {name}: {old} in the folder, {new} now" for name, old, new in differences)
        )
    check_data(workdir, splits)
    check_teachers(workdir, teachers)


def check_data(workdir: Workdir, found: Mapping[str, SplitIdentity]) -> None:
    """Raise ValueError, naming both, if a split is not the one that the run was started with.

    Of a run of an older version only the class names are known, which is printed.
    """
    recorded = load_splits(workdir)
    if not recorded:
        print(f"{workdir.path} is of an older version: only the class names of the data are compared", file=sys.stderr)
        recorded = dict.fromkeys(found, SplitIdentity(load_data_facts(workdir).class_names, 0, ""))
    data = load_config(workdir).data
    check_splits(str(workdir.path), data.name, data.data_dir, recorded, found)


def check_teachers(workdir: Workdir, found: Mapping[str, str]) -> None:
    """Raise ValueError, naming it, if a teacher has other weights than when the run was started.

    Runs of older versions have not recorded them.
    """
    record = _read_record(workdir)
    with files.explained(workdir.config):
        recorded = dict(record.get("teachers", {}))
    for teacher, fingerprint in found.items():
        if recorded.get(teacher, fingerprint) != fingerprint:
            raise ValueError(
                f"{workdir.path} learns from the teacher {teacher}, whose weights have changed since the run was"
                " started (another file, or another best checkpoint); restore them, or use another --workdir"
            )


def check_splits(
    source: str,
    data_name: str,
    data_dir: str | Path,
    recorded: Mapping[str, SplitIdentity],
    found: Mapping[str, SplitIdentity],
) -> None:
    """Raise ValueError, naming both, if a split is not the one that is recorded for `source`, a run or model file."""
    for name, split in found.items():
        if name in recorded and (both := difference(recorded[name], split)):
            raise ValueError(
                f"{source} was trained on another version of {data_name}: {name} of the run and {name} in"
                f" {data_dir} have {both}; prepare the first version again, or train a new run"
            )


def load_splits(workdir: Workdir) -> dict[str, SplitIdentity]:
    """Load the identities of the splits of a run; empty for a run of an older version."""
    record = _read_record(workdir)
    with files.explained(workdir.config):
        return splits_of(record.get("splits", {}))


def splits_of(record: dict) -> dict[str, SplitIdentity]:
    """Return the identities of splits in a record, by name."""
    return {name: SplitIdentity(**tuples(split)) for name, split in record.items()}


def load_config(workdir: Workdir) -> ConfigDict:
    """Load the config of a run; fields that did not exist when the run started have their defaults."""
    record = _read_record(workdir)
    with files.explained(workdir.config):
        return config_of(record["config"])


def config_of(record: dict) -> ConfigDict:
    """Return the config of a record; fields that it lacks have their defaults. ValueError if it is not valid."""
    record = tuples(record)
    config = default_config(record.get("task", "classification"))
    if "model" in record and record["model"].get("name") != config.model.name:
        config.model = {}  # the defaults are fields of another network
    config.update(record)
    validate_for_use(config)
    return config


def load_data_facts(workdir: Workdir) -> DataFacts:
    """Load the properties of the data that the run was trained on."""
    record = _read_record(workdir)
    if "data" not in record:
        raise ValueError(
            f"{workdir.config} is from an older version and does not name the classes; train the run again"
        )
    with files.explained(workdir.config):
        return data_facts_of(record["data"])


def data_facts_of(record: dict) -> DataFacts:
    """Return the properties of the data in a record; TypeError if they are of other types."""
    data = DataFacts(**tuples(record))
    if not all(isinstance(name, str) for name in data.class_names) or not data.class_names:
        raise TypeError(f"the class names are {data.class_names!r:.100}")
    if not all(type(length) is int and 0 < length < 1 << 16 for length in data.image_shape):
        raise TypeError(f"the image shape is {data.image_shape!r:.100}")
    return data


def load_environment(workdir: Workdir) -> dict[str, str]:
    """Load command, commit, versions and devices of a run, those of all starts if they differ: "A, then B"."""
    record = _read_record(workdir)
    with files.explained(workdir.config):
        starts = [record["environment"], *record.get("resumed", [])]
        return {
            name: ", then ".join(dict.fromkeys(str(start[name]) for start in starts if name in start))
            for name in record["environment"]
        }


def record_start(workdir: Workdir, step: int) -> None:
    """Record the environment of this process, which starts after `step`, in config.json.

    From step 0 it replaces all others, because nothing of an earlier attempt is left. Later it is appended if more than
    the command differs from the last start.
    """
    record, now = _read_record(workdir), environment()
    with files.explained(workdir.config):
        last = record.get("resumed", [record["environment"]])[-1]
    if step == 0:
        record = {name: value for name, value in record.items() if name != "resumed"} | {"environment": now}
    elif {**last, "command": ""} != {**now, "command": ""}:
        record["resumed"] = [*record.get("resumed", []), now]
    else:
        return
    files.write_atomically(workdir.config, json.dumps(record, indent=2))


def load_history(workdir: Workdir) -> list[dict]:
    """Load the complete records of metrics.jsonl; empty before the first one."""
    return read_records(workdir.history)


def load_metrics(workdir: Workdir) -> dict[str, dict]:
    """Load the evaluations of a run by name, such as "val" and "test_tta_flip"; empty before the first one."""
    return files.read_json(workdir.metrics) if workdir.metrics.exists() else {}


def environment() -> dict[str, str]:
    """Return command, commit, versions, devices and XLA flags of this process."""
    devices = jax.devices()
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {
        "command": shlex.join(["python", *sys.argv]),
        "commit": _commit(),
        "devices": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}), {_processor()}",
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def _read_record(workdir: Workdir) -> dict:
    if not workdir.config.exists():
        raise FileNotFoundError(f"{workdir.path} is not the folder of a run: it has no {workdir.config.name}")
    record = files.read_json(workdir.config)
    if not isinstance(record, dict):
        raise ValueError(f"{workdir.config} is not the record of a run; restore it")
    return record


def tuples(value):
    """Convert JSON's lists to the tuples of configs."""
    if isinstance(value, dict):
        return {key: tuples(item) for key, item in value.items()}
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value


def _commit() -> str:
    """Return the commit of the source tree, with "+changes" if files differ, or "unknown" outside its repository."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # the environment may be inside of another repository
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of {platform.machine()}"
