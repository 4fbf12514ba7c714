"""Settings and fixtures of all tests: compilation, real data, small configs, untrained networks."""

import os
import signal
from functools import partial
from pathlib import Path

import jax
import linear_model
import pytest
import tiny_detector
from absl import flags
from untrained import untrained

from affect_jax.ops import conv
from affect_jax.process import add_xla_flag, prepare_process
from affect_jax.runs.model_file import Trained
from affect_jax.tasks.interface import DataFacts

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".pytest_cache" / "xla"
SHARED_DATA = ROOT.parent / "shared" / "data"

# Compilation takes most of the time of the tests: cache all programs and optimize little, also in the scripts that
# tests start. Resuming and training on several devices are tested with the programs of users too: see run_script.py.
SETTINGS = {
    "jax_compilation_cache_dir": str(CACHE),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
    "jax_disable_most_optimizations": True,
}
for name, value in SETTINGS.items():
    os.environ[name.upper()] = str(value)
    jax.config.update(name, value)
# so that scripts find linear_model and tiny_detector
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
add_xla_flag("xla_cpu_use_fusion_emitters", "false")  # XLA compiles in half the time
prepare_process()
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts background commands so; tests send Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # grain's workers read flags, which absl's app parses in the scripts


def pytest_collection_modifyitems(items):
    """Run the files with slow tests first, then those in this folder: a long file that starts late ends alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, item.path.parent != Path(__file__).parent))


@pytest.fixture(autouse=True)
def unchanged_interrupts():
    """Restore the handler of Ctrl-C after each test: a script that a test imports ends the process on it."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def plain_convolutions(monkeypatch):
    """Compute convolutions with XLA's operation: the forms for CPU, which test_conv.py tests, compile slowly."""
    plain = conv._xla, partial(conv._derived_gradients, conv._xla)
    monkeypatch.setattr(conv, "_cpu_forms", lambda *shapes: plain)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; the test is skipped if it does not exist."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data: {SHARED_DATA} is absent")
    return SHARED_DATA


@pytest.fixture
def tiny_config():
    """The config of linear_model.py with a small convolutional network."""
    config = linear_model.get_config()
    config.model = {"name": "vgg_fer", "widths": (4, 8), "convs_per_block": 1, "dense": (16,), "dropout": 0.5}
    return config


@pytest.fixture(scope="module")
def tiny_detector_config():
    """The config of tiny_detector.py."""
    return tiny_detector.get_config()


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
