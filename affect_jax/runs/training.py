"""A run: from a config and a folder to a trained, evaluated and reported network."""

import zlib
from contextlib import ExitStack, suppress
from pathlib import Path
from zipfile import BadZipFile

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from affect_jax.config_checks import validate
from affect_jax.data.identity import Fingerprint
from affect_jax.files import find_bundled
from affect_jax.models.pretrained import Pretrained, load_pretrained, named_weights, trained_with
from affect_jax.runs import workdir
from affect_jax.runs.best_checkpoint import load_best_variables
from affect_jax.runs.evaluation import record_evaluation
from affect_jax.runs.model_file import check_weights, load_trained, load_trained_run
from affect_jax.runs.workdir import Workdir
from affect_jax.tasks import build_task
from affect_jax.tasks.interface import Teacher
from affect_jax.train.builders import build_checkpoints
from affect_jax.train.checkpoint import Checkpoints, set_aside_damaged, step_folders
from affect_jax.train.loop import BestEvaluation, Trainer
from affect_jax.train.progress import RunLog
from affect_jax.train.state import make_apply
from affect_jax.train.writers import JsonlWriter, tensorboard_writer


def train_and_evaluate(config: ConfigDict, path: str | Path) -> dict[str, float]:
    """Run `config` in the folder `path`, or resume the run there; return the best checkpoint's metrics, "val/...".

    Raises ValueError if the config cannot be run or the folder belongs to another run, Interrupted after a signal (with
    everything saved), FloatingPointError if loss, gradient or weights are not finite, and OSError if something cannot
    be read or written. In all cases the same call resumes from the last checkpoint.
    """
    validate(config)
    run, say = Workdir(path), print_line if jax.process_index() == 0 else ignore_line
    workdir.check_place(run.path)
    say("opening the data and setting the initial weights")
    weights = None if step_folders(run.checkpoints) else load_initial_weights(config)  # a checkpoint has its own
    trainer = Trainer(config, build_task(config, load_teachers(config)), weights)
    with ExitStack() as resources:
        resources.callback(trainer.close)
        # Nothing has been written up to here: a config that cannot run leaves no folder.
        resources.enter_context(workdir.locked(run))
        teachers = {teacher.source: teacher.fingerprint for teacher in trainer.task.teachers}
        workdir.claim(run, config, trainer.data, trainer.task.identify_data(), teachers)
        for line in set_aside_damaged(run.checkpoints):
            say(line)
        checkpoints = build_checkpoints(config, run.checkpoints)
        resources.callback(checkpoints.close)
        if checkpoints.newest is not None:
            trainer.restore(checkpoints)
            finished = trainer.step == trainer.plan.total_steps
            say("the run is finished: writing its report again" if finished else f"resuming from step {trainer.step}")
        elif run.history.exists():
            say("the run has no checkpoint yet: starting again from step 0")
        if jax.process_index() == 0 and trainer.step < trainer.plan.total_steps:
            workdir.record_start(run, trainer.step)
        say(f"{trainer.describe()}; workdir: {run.path}")

        log = open_log(run, trainer, say)
        resources.callback(log.close)
        trainer.train(checkpoints, log, lambda best: write_best(run, trainer, best))
        metrics = report_best(run, trainer, checkpoints)
    say(f"report: {run.report}; checkpoints and TensorBoard events: {run.path}")
    return trainer.task.scalars(metrics)


def load_initial_weights(config: ConfigDict) -> Pretrained | None:
    """Load the weights of `config.init_from`: a file, a hub reference, or the best checkpoint of another run."""
    if not config.init_from:
        return None
    reference = find_bundled(config.init_from)
    if not Workdir(reference).config.exists():
        return load_pretrained(reference)
    other = load_trained_run(reference)
    return trained_with(other.config, other.data.class_names, named_weights(other.variables), config.init_from)


def load_teachers(config: ConfigDict) -> list[Teacher]:
    """Load the networks that `config.distillation` names; ValueError if one is not a classifier."""
    teachers = config.distillation.teachers if "distillation" in config else ()
    return [load_teacher(reference, config.dtype) for reference in teachers]


def load_teacher(reference: str, dtype: str) -> Teacher:
    """Load a classifier, from a model file or a run, as a function from images to probabilities.

    It computes in `dtype`, which may be another than that of its own run: bfloat16 is slow on CPU.
    """
    trained = load_trained(reference)
    if trained.config.task != "classification":
        raise ValueError(f"the teacher {reference} is not a classifier")
    check_weights(trained)
    trained.config.dtype = dtype
    task = build_task(trained.config)
    predict = task.predict_fn(make_apply(task.build_network(trained.data)), trained.data)
    fingerprint = Fingerprint()
    fingerprint.add(named_weights(trained.variables))

    def probabilities(images: jax.Array) -> jax.Array:
        return predict(trained.variables, {"image": images})["probs"]

    return Teacher(reference, fingerprint.text(), trained.data, probabilities)


def open_log(run: Workdir, trainer: Trainer, say) -> RunLog:
    """Open the run's records; only process 0 writes."""
    writers = []
    if jax.process_index() == 0:
        writers = [JsonlWriter(run.history, trainer.step), tensorboard_writer(run.path, trainer.step)]
    return RunLog(trainer.plan.total_steps, trainer.plan.steps_per_epoch, trainer.task.progress_metrics, say, writers)


def write_best(run: Workdir, trainer: Trainer, best: BestEvaluation) -> None:
    """Write the predictions of the best checkpoint so far, which the report after the last step is made from."""
    if jax.process_index() == 0:
        run.predictions.mkdir(exist_ok=True)
        file = run.predictions_file(trainer.validation.name)
        trainer.task.write_predictions(file, best.predictions, trainer.validation, best.step)


def report_best(run: Workdir, trainer: Trainer, checkpoints: Checkpoints) -> dict:
    """Record the best checkpoint's evaluation on val and write the report; return its metrics.

    The predictions are those that the loop made. They are computed again only if an interruption lost them.
    """
    step, evaluation = checkpoints.best, trainer.validation
    predictions = best_predictions(run, trainer, step)
    if predictions is None:
        _, variables = load_best_variables(run)
        predictions = trainer.predict_val(variables)
    return record_evaluation(run, trainer.task, evaluation, step, predictions)


def best_predictions(run: Workdir, trainer: Trainer, step: int):
    """Return the predictions of checkpoint `step` from memory or from the folder, or None."""
    if trainer.best is not None and trainer.best.step == step:
        found = trainer.best.predictions
    else:
        found = None
        # A missing or damaged file costs an evaluation, not the run.
        with suppress(OSError, EOFError, ValueError, KeyError, BadZipFile, zlib.error):
            stored_step, stored = trainer.task.read_predictions(run.predictions_file(trainer.validation.name))
            found = stored if stored_step == step else None
    # All processes must decide the same way, because predicting is a computation of all of them.
    everywhere = multihost_utils.process_allgather(found is not None).all()
    return found if everywhere else None


def print_line(line: str) -> None:
    """Print a line at once, also into a pipe."""
    print(line, flush=True)


def ignore_line(line: str) -> None:
    """Print nothing: process 0 prints."""
