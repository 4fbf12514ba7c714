"""Shared by all tests: a compile cache beside pytest's own, real data where it is, a run small enough to repeat."""

import os
from functools import partial
from pathlib import Path

import jax
import pytest
from absl import flags
from untrained import untrained

from affect_jax.config import classification_config, detection_config
from affect_jax.ops import conv
from affect_jax.process import prepare_process
from affect_jax.runs.model_file import Trained
from affect_jax.tasks.interface import DataFacts

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".pytest_cache" / "xla"
SHARED_DATA = ROOT.parent / "shared" / "data"

os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)  # for the scripts that tests start
jax.config.update("jax_compilation_cache_dir", str(CACHE))

# Compilation takes longest here.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
jax.config.update("jax_disable_most_optimizations", True)
prepare_process()
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # grain's workers read flags, which absl's app would have parsed


@pytest.fixture
def plain_convolutions(monkeypatch):
    """Every convolution is XLA's own on CPU too: its forms there, held by test_conv.py, take long to compile."""
    plain = conv._xla, partial(conv._derived_gradients, conv._xla)
    monkeypatch.setattr(conv, "_cpu_forms", lambda *shapes: plain)


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data; skips where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data: {SHARED_DATA} is absent")
    return SHARED_DATA


@pytest.fixture
def tiny_config(make_tiny_config):
    """Twelve updates of a small network on few drawn faces, with every source of randomness switched on."""
    return make_tiny_config()


@pytest.fixture(scope="module")
def tiny_run_config():
    """The same, for runs that a module shares; to be left as it is."""
    return tiny_classification_config()


@pytest.fixture(scope="session")
def make_tiny_config():
    """What makes tiny_config, for fixtures that live longer than a test."""
    return tiny_classification_config


def tiny_classification_config():
    config = classification_config()
    config.data.name = "drawn_faces"
    config.data.options = {"num_examples": {"train": 100, "val": 40, "test": 40}}
    config.model = {"name": "vgg_fer", "widths": (4, 8), "convs_per_block": 1, "dense": (16,), "dropout": 0.5}
    config.batch_size = 16
    config.eval_batch_size = 32
    config.total_epochs = 1.92
    config.eval_every_epochs = 0.96
    config.log_every_steps = 2
    config.optim.name = "sgd"
    config.optim.learning_rate = 0.01
    config.optim.schedule = "cosine"
    config.optim.warmup_epochs = 0.32
    config.ema_decay = 0.9
    config.mixup_alpha = 0.2
    config.label_smoothing = 0.1
    config.augment.rotation = 10.0
    config.augment.horizontal_flip = True
    config.augment.erase_probability = 0.5
    return config


@pytest.fixture(scope="module")
def tiny_detector_config():
    """Six updates of a narrow detector on few small drawn scenes, with every change of pictures switched on."""
    config = detection_config()
    config.data.name = "drawn_scenes"
    config.data.options = {"num_examples": {"train": 12, "val": 4, "test": 4}, "image_size": (96, 128)}
    config.data.buckets = ((96, 128),)
    config.data.max_boxes = 8
    config.model.backbone_name = "resnet18"
    config.model.fpn_channels = config.model.box.representation_size = 16
    for part in (config.model.rpn, config.model.box):
        part.update({name: 64 for name in part if "nms_top_n" in name or name.endswith("per_image")})
    config.batch_size = config.eval_batch_size = 2
    config.total_epochs = 1.0
    config.eval_every_epochs = 0.5
    config.log_every_steps = 1
    config.optim.learning_rate = 0.01
    config.transform.scale_range = (0.8, 2.0)
    config.transform.min_face = 4.0
    config.transform.horizontal_flip = True
    for change in ("low_light", "blur", "equalize", "clahe"):
        config.transform[f"{change}_probability"] = 0.5
    config.transform.brightness = config.transform.contrast = 0.1
    return config


@pytest.fixture
def classifier(tiny_config) -> Trained:
    """A small untrained classifier of gray faces of 48 pixels."""
    return untrained(tiny_config, DataFacts(("happy", "sad", "neutral"), (48, 48, 1)))


@pytest.fixture
def detector(tiny_detector_config) -> Trained:
    """A small untrained detector that resizes images to 96x128 or 128x96."""
    config = tiny_detector_config.copy_and_resolve_references()
    config.data.eval_buckets = ((96, 128), (128, 96))
    config.model.box.score_thresh = 0.0
    return untrained(config, DataFacts(("face",), ()))
