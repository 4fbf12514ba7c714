import pytest
from predict_networks import untrained

from affect_jax.predict.model_file import Trained
from affect_jax.train.workdir import DataFacts


@pytest.fixture
def classifier(tiny_config) -> Trained:
    """A small one for gray faces of 48 pixels."""
    return untrained(tiny_config, DataFacts(("happy", "sad", "neutral"), (48, 48, 1)))


@pytest.fixture
def detector(tiny_detector_config) -> Trained:
    """A small one, whose pictures are brought to 96x128 or 128x96."""
    config = tiny_detector_config.copy_and_resolve_references()
    config.data.eval_buckets = ((96, 128), (128, 96))
    config.model.box_score_thresh = 0.0
    return untrained(config, DataFacts(("face",), ()))
