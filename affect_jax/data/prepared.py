"""The base of all data sets that are prepared once with tfds, as array_record files, without TensorFlow."""

import contextlib
import json
import os
import platform
import shutil
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import tensorflow_datasets as tfds
from tqdm import tqdm

from affect_jax.data import SPLITS
from affect_jax.data.identity import Fingerprint
from affect_jax.data.records import CLASS_NAMES, fingerprints_file
from affect_jax.data.source import BadInput, BadRows
from affect_jax.data.source_files import INFO, is_prepared
from affect_jax.files import contains, printable, write_atomically

REPLACED = "replaced"
"""Name, in the temporary folder of a preparation, of the data set that it replaces."""


class Preparation(NamedTuple):
    """Result of a preparation: counts[split][class], remarks about the source, and the config for a first run."""

    directory: Path
    counts: dict[str, dict[str, int]]
    skipped: list[BadInput]
    remarks: list[str]
    config: str


class Option(NamedTuple):
    """An option of one data set: a keyword argument of its builder and a flag of scripts/prepare_data.py."""

    name: str
    type: type
    """str, int, float or bool"""
    help: str


class SourceBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base of all prepared data sets: the source is read and checked, then written completely or not at all.

    `source` is the file or folder of the publishers, `on_bad_row` is "fail" or "skip", `allow_other_counts` accepts
    other counts than the published ones. Only `prepare` needs them. The source is checked before anything is written.
    Image files are read while they are written, so a large data set does not have to fit in memory.
    """

    VERSION = tfds.core.Version("1.0.0")
    OPTIONS: ClassVar[tuple[Option, ...]] = ()
    """Options of this data set, in addition to the options of all data sets."""
    REQUIRED_SPLITS: ClassVar[tuple[str, ...]] = SPLITS
    CLASS_NAMES: ClassVar[tuple[str, ...]]
    DESCRIPTION: ClassVar[str]
    LICENCE: ClassVar[str] = ""
    """Terms of the publishers, repeated in exported models; "" if only the user can know them."""
    UNIT: ClassVar[str] = "faces"
    """Word for an example in messages."""
    CONFIG: ClassVar[str] = "fer_vgg"
    """Name of the config for a first run on this data set, NAME or NAME:VARIANT."""
    url_infos = None  # nothing is downloaded, and tfds would need an undeclared package to look for URLs

    def __init__(
        self,
        *,
        source: str | Path | None = None,
        on_bad_row: str = "fail",
        allow_other_counts: bool = False,
        **kwargs,
    ):
        self.source, self.allow_other_counts = source, allow_other_counts
        self.bad_rows = BadRows(on_bad_row)
        self.unusual: dict[str, tuple[int, Path]] = {}
        self.fingerprints = defaultdict(Fingerprint)
        check_names(self.class_names, source)  # the error of tfds for equal names does not name them
        super().__init__(**kwargs)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the order of their integer labels."""
        return self.CLASS_NAMES

    @property
    def first_config(self) -> str:
        """Name of the config for a first run on the data set as its options make it."""
        return self.CONFIG

    def read_source(self) -> Iterator[dict]:
        """Read examples in the order of the source: split, file (below the source) and the features."""
        raise NotImplementedError

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        """Return the stored features of an example."""
        raise NotImplementedError

    def labels_of(self, example: dict) -> Iterable[int]:
        """Return the labels that the example adds to the counts."""
        raise NotImplementedError

    def review(self, examples: dict[str, list[dict]], counts: dict[str, Counter]) -> list[str]:
        """Check the examples by split and their counts by class; return remarks. BadInput if they are not valid.

        It is called for the examples of the source, and again for those that were written.
        """
        raise NotImplementedError

    def check_classes(self) -> None:
        """Raise BadInput if the counts lack a class that the data set needs; by default it needs none."""

    def accept_counts(self, problems: list[str], remedy: str = "use the complete published data set") -> list[str]:
        """Return problems of the counts as remarks; BadInput if there are any, unless other counts are allowed."""
        if problems and not self.allow_other_counts:
            remedy = f"{remedy}, or accept other counts with --allow_other_counts"
            raise BadInput(self.source, None, "; ".join(problems), remedy)
        return problems

    def missing_classes(self) -> list[str]:
        """Return a remark for each split that lacks a class."""
        return [
            f"{split} has no {', '.join(missing)}"
            for split, counts in self.counts.items()
            if any(counts.values()) and (missing := [name for name in counts if not counts[name]])
        ]

    def load(self, example: dict) -> dict:
        """Return the example with its image, decoded or not; ValueError with only the reason if it is unreadable."""
        raise NotImplementedError

    def encode(self, example: dict) -> dict:
        """Encode a loaded example for its features."""
        raise NotImplementedError

    def write_extra_files(self, directory: Path) -> None:
        """Write files in addition to the records, if the data set has any."""

    def note(self, path: Path, remark: str) -> None:
        """Take a remark on an image file, for `describe_unusual`."""
        count, first = self.unusual.get(remark, (0, path))
        self.unusual[remark] = count + 1, first

    def describe_unusual(self) -> list[str]:
        """Return each remark on image files with their number and one of them."""
        return [
            f"remark on {count:,} images, for example {printable(first)}: {remark}"
            for remark, (count, first) in self.unusual.items()
        ]

    def read(self) -> None:
        """Read and check the source: set `examples` and `counts`, both by split, and `remarks`.

        BadInput if the source is not usable.
        """
        examples = {split: [] for split in SPLITS}
        rows = self.read_source()
        for example in tqdm(rows, f"reading {self.source}", unit=f" {self.UNIT}", delay=2, disable=None):
            examples[example.pop("split")].append(example)
        if empty := [split for split in self.REQUIRED_SPLITS if not examples[split]]:
            raise BadInput(self.source, None, f"no {self.UNIT} for {', '.join(empty)}", "this split must not be empty")
        if not any(examples.values()):
            raise BadInput(self.source, None, f"no {self.UNIT}", "at least one split must not be empty")
        self.examples = examples
        self._check()

    def _check(self) -> None:
        """Count and review the examples: set `counts` and `remarks`."""
        counts = {
            split: Counter(self.class_names[label] for example in some for label in self.labels_of(example))
            for split, some in self.examples.items()
        }
        self.remarks = self.review(self.examples, counts)
        self.counts = {split: {name: counts[split][name] for name in self.class_names} for split in counts}
        self.check_classes()

    def _info(self) -> tfds.core.DatasetInfo:
        info = tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(self.features()),
            # example i of a split is its i-th row in the source
            disable_shuffling=True,
        )
        info.initialize_from_bucket = lambda: None  # it would search the network for this name and leave a folder
        return info

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {split: self._generate_examples(some, split) for split, some in self.examples.items() if some}

    def _generate_examples(self, examples: list[dict], split: str) -> Iterator[tuple[int, dict]]:
        self.examples[split] = []  # those that are written
        progress = tqdm(examples, f"writing {split}", unit=f" {self.UNIT}", delay=2, disable=None)
        for index, example in enumerate(progress):
            try:
                loaded = self.load(example)
            except ValueError as reason:
                self.bad_rows.report(Path(self.source) / example["file"], example.get("row"), str(reason))
                continue
            self.examples[split].append(example)
            self.fingerprints[split].add(loaded)
            yield index, {**self.encode(loaded), "file": printable(example["file"])}
        if not self.examples[split]:
            raise BadInput(self.source, None, f"no readable image for {split}", "a split must not be empty")

    @classmethod
    def directory(cls, data_dir: str | Path) -> Path:
        """Return the folder of this version of the data set in `data_dir`."""
        return Path(data_dir) / cls.name / str(cls.VERSION)

    @classmethod
    def prepared_directory(cls, data_dir: str | Path) -> Path:
        """Return the folder of the data set; FileNotFoundError, with the command to run, if it is not prepared."""
        directory = cls.directory(data_dir)
        if not directory.is_dir():
            raise FileNotFoundError(f"{directory}: {cls.name} is not prepared; run\n  {cls.prepare_command(data_dir)}")
        return directory

    @classmethod
    def prepare(cls, data_dir: str | Path, overwrite: bool = False, **options) -> Preparation:
        """Read the source and write the data set into `data_dir`, completely or not at all.

        `options` are arguments of the builder. With `overwrite` it replaces a data set that is already prepared.
        BadInput on an unusable source, ValueError if the source is in the folder of the data set, FileExistsError if
        the folder exists and may not be replaced.
        """
        target = cls.directory(data_dir)
        prefix = f".{cls.name}.{platform.node()}."  # process ids are those of one machine
        for leftover in Path(data_dir).glob(f"{prefix}*"):  # of a killed process
            if (pid := leftover.name.removeprefix(prefix)).isdecimal() and not is_other_process(int(pid)):
                discard(leftover, target)
        if is_prepared(target) and not overwrite:
            raise FileExistsError(f"{target}: already prepared; replace it with --overwrite")
        if target.exists() and not is_prepared(target):
            raise FileExistsError(f"{target}: not a prepared data set, it has no {INFO}; move it away")
        temporary = Path(data_dir) / f"{prefix}{os.getpid()}"
        builder = cls(data_dir=temporary, **options)
        if contains(target, builder.source):
            raise ValueError(f"{builder.source} is in {target}, the folder of the data set; move it away")
        with builder.bad_rows.named_in_errors():
            builder.read()  # before the first folder is made
        tfds.disable_progress_bar()
        try:
            with builder.bad_rows.named_in_errors():
                with contextlib.redirect_stdout(None):  # tfds prints the temporary folder
                    builder.download_and_prepare(
                        download_dir=temporary / "downloads",
                        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
                        file_format="array_record",
                    )
                builder._check()  # again: unreadable images are no longer among the examples
                remarks = [*builder.remarks, *builder.missing_classes(), *builder.describe_unusual()]
            written = cls.directory(temporary)
            builder.write_extra_files(written)
            fingerprints = {split: fingerprint.text() for split, fingerprint in builder.fingerprints.items()}
            names = [name.strip() for name in builder.class_names]  # as tfds reads them
            write_atomically(fingerprints_file(written), json.dumps({**fingerprints, CLASS_NAMES: names}))
            target.parent.mkdir(exist_ok=True)
            if target.exists():
                target.rename(temporary / REPLACED)
            written.rename(target)
        finally:
            discard(temporary, target)
        return Preparation(target, builder.counts, builder.bad_rows.skipped, remarks, builder.first_config)

    @classmethod
    def prepare_command(cls, data_dir: str | Path) -> str:
        """Return the command that prepares this data set."""
        return f"python scripts/prepare_data.py {cls.name} --source=PATH --data_dir={data_dir}"


def check_names(class_names: Sequence[str], source: str | Path) -> None:
    """Raise BadInput for a blank class name and for two that look the same, as with "é" in one and in two code points.

    Blanks at the ends do not count, because tfds drops them.
    """
    seen = {}
    for name in class_names:
        shown = unicodedata.normalize("NFC", printable(name)).strip()
        if not shown:
            raise BadInput(source, None, f"the class name {name!r} is blank", "rename the class")
        if shown in seen:
            raise BadInput(source, None, f"the class names {seen[shown]!a} and {name!a} look the same", "rename one")
        seen[shown] = name


def is_other_process(pid: int) -> bool:
    """Return True if another process of this machine has this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the process of another user
        return True
    return pid != os.getpid()


def discard(temporary: Path, target: Path) -> None:
    """Remove the temporary folder of a preparation; a data set that it moved away and did not replace is put back."""
    if (temporary / REPLACED).exists() and not target.exists():
        (temporary / REPLACED).rename(target)
    shutil.rmtree(temporary, ignore_errors=True)
