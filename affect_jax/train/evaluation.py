"""Evaluation of a run's checkpoint: metrics, predictions, figures and the report, all in its folder."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from affect_jax.data.pipeline import InMemorySplit
from affect_jax.data.transforms import transform
from affect_jax.evaluate.classification import classification_metrics, valence_arousal_metrics
from affect_jax.evaluate.detection import detection_metrics
from affect_jax.evaluate.sections import Presentation, Section
from affect_jax.files import whole_file, write_atomically
from affect_jax.runs.report import save_figures, write_report
from affect_jax.tasks import classification_report, detection_report
from affect_jax.train import builders, workdir
from affect_jax.train.checkpoint import check_fit
from affect_jax.train.classification import predict_split
from affect_jax.train.detection import detect_split
from affect_jax.train.mesh import data_mesh, process_rows
from affect_jax.train.state import Apply, init_variables, make_apply

SAMPLES_SHOWN, DRAWS_SHOWN = 4, 7


def evaluate_run(path: str | Path, split_name: str, **options) -> dict:
    """evaluate_classifier or evaluate_detector of the run in `path`, as its task is."""
    return EVALUATIONS[workdir.load_config(workdir.Workdir(path)).task](path, split_name, **options)


def evaluate_classifier(path: str | Path, split_name: str, tta: str = "none") -> dict:
    """Metrics of the best checkpoint of the run in `path` on a split, by classification_metrics; written down there.

    They join metrics.json under the split's name, with "_tta_NAME" behind it where `tta` is not "none";
    predictions/NAME.npz gets probabilities and labels, figures/ the figures, and report.html is made anew.
    """
    run = workdir.Workdir(path)
    config = workdir.load_config(run)
    mesh = data_mesh()
    split = InMemorySplit(builders.build_split(config, split_name), split_name)
    step, apply, variables = load_best(run, config, split.class_names, split.image_shape)
    predict = builders.build_predict(config, apply, len(split.class_names), mesh, tta)
    predictions = predict_split(predict, variables, split, config.eval_batch_size, mesh)
    metrics = {"split": split_name, "tta": tta, "checkpoint_step": step, **prediction_metrics(predictions, split)}
    if jax.process_index() == 0:
        name = split_name if tta == "none" else f"{split_name}_tta_{tta}"
        add_metrics(run, name, metrics)
        with whole_file(run.predictions / f"{name}.npz") as file:
            np.savez_compressed(file, labels=split.arrays["label"], **predictions)
        write_run_report(run, split, name, predictions["probs"])
    multihost_utils.sync_global_devices("the evaluation is written")
    return metrics


def evaluate_detector(path: str | Path, split_name: str, **options) -> dict:
    """Metrics of the best checkpoint of the run in `path` on a split, by detection_metrics; written down there.

    `options` are those of choose_pictures. They join metrics.json under its name; predictions/NAME.npz gets detections
    and true boxes, figures/ the figures, and report.html is made anew.
    """
    run = workdir.Workdir(path)
    config = workdir.load_config(run)
    mesh = data_mesh()
    pictures = choose_pictures(config, split_name, **options)
    split, settings, name = pictures.split, pictures.settings, pictures.name
    step, apply, variables = load_best(run, config, split.class_names)
    batches = builders.evaluation_box_batches(config, split, settings, process_rows(config.eval_batch_size))
    found, losses = detect_split(builders.build_detect(config, apply, mesh), variables, batches, len(split), mesh)
    metrics = {"split": pictures.shown, "checkpoint_step": step, **found_metrics(found, losses, split)}
    if jax.process_index() == 0:
        add_metrics(run, name, metrics)
        truths = [split.annotations(picture) for picture in range(len(split))]
        write_detections(run.predictions / f"{name}.npz", truths, found)
        write_detector_report(run, config, pictures, truths, found)
    multihost_utils.sync_global_devices("the evaluation is written")
    return metrics


def evaluate_function(
    find: Callable[[np.ndarray], dict[str, np.ndarray]], path: str | Path, split_name: str, **options
) -> dict:
    """Metrics, as evaluate_detector's, of `find`, image uint8 [H, W, 3] -> detections, on the very same pictures."""
    config = workdir.load_config(workdir.Workdir(path))
    pictures = choose_pictures(config, split_name, **options)
    found = [{}] * len(pictures.split)
    for batch in builders.evaluation_box_batches(config, pictures.split, pictures.settings):
        for row in np.flatnonzero(batch["mask"]):
            height, width = batch["image_size"][row]
            detections = find(batch["image"][row, :height, :width])
            found[batch["index"][row]] = {**detections, "boxes": detections["boxes"] / batch["scale"][row]}
    return {"split": pictures.shown, **found_metrics(found, {}, pictures.split)}


class Pictures(NamedTuple):
    """What a detector is evaluated on."""

    split: Any
    settings: dict
    """Of transforms.transform."""
    name: str
    """For files: "val_dark_clahe", "darkface_val"."""
    shown: str
    """For people."""


def choose_pictures(
    config: ConfigDict,
    split_name: str,
    dark: bool = False,
    brighten: str = "none",
    data: str = "",
    data_dir: str | Path = "",
) -> Pictures:
    """The split of the run's set, or of the one that `data` and `data_dir` name.

    `dark` takes pictures through the low-light simulator first; `brighten`, one of BRIGHTENINGS, brightens them then.
    """
    other = config.copy_and_resolve_references()
    other.data.name, other.data.data_dir = data or config.data.name, str(data_dir or config.data.data_dir)
    if data:
        other.data.options = {}
    changes = [*(["dark"] if dark else []), *([brighten] if brighten != "none" else [])]
    return Pictures(
        builders.build_split(other, split_name),
        ({"low_light_probability": 1.0} if dark else {}) | BRIGHTENINGS[brighten],
        "_".join([*([data] if data else []), split_name, *changes]),
        ", ".join([other.data.name, split_name, *changes]),
    )


EVALUATIONS = {"classification": evaluate_classifier, "detection": evaluate_detector}
BRIGHTENINGS = {
    "none": {},
    "equalize": {"equalize_probability": 1.0},
    "clahe": {"clahe_probability": 1.0},
}
"""What may be done to a picture before faces are looked for in it, as settings of transforms.transform."""


def load_best(
    run: workdir.Workdir, config: ConfigDict, class_names: Sequence[str], image_shape: tuple[int, ...] = ()
) -> tuple[int, Apply, dict]:
    """Step of the run's best checkpoint, its network and variables."""
    model = builders.build_network(config, len(class_names))
    step, variables = builders.load_best_variables(run)
    inputs = builders.network_inputs(config, image_shape)
    shapes = jax.eval_shape(lambda key: init_variables(model, key, inputs), jax.random.key(0))
    check_fit(shapes, variables, f"checkpoint {step}")
    return step, make_apply(model), variables


def add_metrics(run: workdir.Workdir, name: str, metrics: dict) -> None:
    """Write an evaluation beside those that metrics.json has."""
    run.predictions.mkdir(exist_ok=True)
    write_atomically(run.metrics, json.dumps({**workdir.load_metrics(run), name: metrics}, indent=2))


def found_metrics(found: list[dict], losses: dict[str, float], split, with_interval: bool = True) -> dict:
    """detection_metrics of detect_split's detections, and the losses."""
    truths = [split.annotations(picture) for picture in range(len(split))]
    return {**detection_metrics(truths, found, split.class_names, with_interval), "losses": losses}


def prediction_metrics(predictions: dict[str, np.ndarray], split: InMemorySplit) -> dict:
    """classification_metrics of predict_split's predictions, and valence_arousal_metrics where there are such."""
    metrics = classification_metrics(predictions["probs"], split.arrays["label"], split.class_names)
    if predictions["valence_arousal"].size:
        metrics.update(valence_arousal_metrics(predictions["valence_arousal"], split.arrays["valence_arousal"]))
    return metrics


def write_detections(path: Path, truths: Sequence[dict], found: Sequence[dict]) -> None:
    """Detections and true boxes of a split's pictures in one file: read_detections gives them back."""
    arrays = {}
    for prefix, pictures in (("", found), ("true_", truths)):
        arrays[f"{prefix}count"] = [len(one["boxes"]) for one in pictures]
        arrays |= {prefix + key: np.concatenate([one[key] for one in pictures]) for key in pictures[0]}
    with whole_file(path) as file:
        np.savez_compressed(file, **arrays)


def read_detections(file: Path) -> tuple[list[dict], list[dict]]:
    """The truths and detections that write_detections wrote, a dict a picture; ValueError where it was not it."""
    with np.load(file) as stored:
        arrays = dict(stored)
    if "true_count" not in arrays:
        raise ValueError(f"{file} is of an older version, without true boxes; evaluate the run again")

    def pictures(prefix: str, names: Sequence[str]) -> list[dict]:
        ends = np.cumsum(arrays[f"{prefix}count"])[:-1]
        columns = [np.split(arrays[prefix + name], ends) for name in names]
        return [dict(zip(names, one, strict=True)) for one in zip(*columns, strict=True)]

    return pictures("true_", ("boxes", "label", "ignore")), pictures("", ("boxes", "scores", "label"))


def write_run_report(run: workdir.Workdir, split: InMemorySplit, name: str, probs: np.ndarray) -> None:
    """Write report.html and the figures of a classifier's run, with the mistakes of the evaluation `name`."""
    config, evaluations = workdir.load_config(run), workdir.load_metrics(run)
    samples = builders.augmented_samples(config, builders.build_split(config, "train"), SAMPLES_SHOWN, DRAWS_SHOWN)
    images, labels = split.arrays["image"], split.arrays["label"]
    sections = classification_report.sections(evaluations, name, images, labels, probs, samples)
    write_pages(run, config, name, classification_report.PRESENTATION, sections)


def write_detector_report(
    run: workdir.Workdir, config: ConfigDict, pictures: Pictures, truths: list[dict], found: list[dict]
) -> None:
    """Write report.html and the figures of a detector's run, with the images on which it makes most mistakes."""
    split = pictures.split

    def read_image(index: int) -> tuple[np.ndarray, str]:
        image = seen(split.read_image(index), pictures.settings, (config.seed, index))
        return image, split.places([index])[0]

    sections = detection_report.sections(workdir.load_metrics(run), pictures.name, truths, found, read_image)
    write_pages(run, config, pictures.name, detection_report.PRESENTATION, sections)


def write_pages(
    run: workdir.Workdir, config: ConfigDict, name: str, presentation: Presentation, sections: Sequence[Section]
) -> None:
    """Write report.html with the sections of the evaluation `name`, and their figures to figures/."""
    environment, history = workdir.load_environment(run), workdir.load_history(run)
    save_figures(run.figures, sections, name)
    write_report(
        run.report,
        title=f"{config.model.name} on {config.data.name}",
        protocol=protocol(config, history, environment),
        history=history,
        evaluations=workdir.load_metrics(run),
        presentation=presentation,
        sections=sections,
        config=config.to_dict(),
        environment=environment,
    )


def seen(picture: dict[str, np.ndarray], settings: dict, seed: tuple[int, int]) -> np.ndarray:
    """The picture as the evaluation's `settings` change it, in its own size."""
    size = picture["image"].shape[:2]
    return transform(**picture, bucket=size, rng=np.random.default_rng(seed), **settings)["image"]


def protocol(config: ConfigDict, history: list[dict], environment: dict[str, str]) -> dict[str, str]:
    """How a run's numbers came about, for its report."""
    return {
        "data": config.data.name,
        "trained on": f"train, {config.total_epochs:g} epochs",
        "checkpoint selected by": config.select_on,
        "seed": str(config.seed),
        "command": environment["command"],
        "commit": environment["commit"],
        "hardware": environment["devices"],
        "wall time": f"{history[-1]['seconds'] / 60:.1f} minutes",
    }
