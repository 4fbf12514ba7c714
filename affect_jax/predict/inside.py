"""Look inside a classifier: feature maps, class activation maps and augmented inputs of a face.

H W of an image, h w of a feature map, C channels.
"""

import jax
import jax.numpy as jnp
import numpy as np

from affect_jax.data.faces import face_input
from affect_jax.models.inspection import apply_from, feature_maps
from affect_jax.ops.photometric import normalize
from affect_jax.predict.networks import network
from affect_jax.runs.model_file import Trained
from affect_jax.tasks.classification import augmented_images


def face_feature_maps(trained: Trained, face: np.ndarray) -> dict[str, np.ndarray]:
    """Return the output float32 [h, w, C] of each layer, in order, for a face RGB uint8 [H, W, 3] of any size."""
    maps = feature_maps(network(trained), trained.variables, prepared(trained, face))
    return {name: np.asarray(features[0]) for name, features in maps.items()}


def class_activation(trained: Trained, face: np.ndarray, expression: str, layer: str = "") -> np.ndarray:
    """Return the Grad-CAM map of an expression, float32 [h, w] from 0 to 1 (Selvaraju et al. 2017, arXiv:1610.02391).

    `layer` is a name of face_feature_maps; the default is the last layer with more than one position. The map is 0
    everywhere if no position raises the logit of the expression. Raises ValueError on an unknown expression or layer.
    """
    model, x = network(trained), prepared(trained, face)
    if expression not in trained.data.class_names:
        raise ValueError(f"unknown expression {expression!r}; choose from {', '.join(trained.data.class_names)}")
    maps = feature_maps(model, trained.variables, x)
    layer = layer or [name for name, features in maps.items() if min(features.shape[1:3]) > 1][-1]
    if layer not in maps:
        raise ValueError(f"unknown layer {layer!r}; choose from {', '.join(maps)}")
    rest, index = apply_from(model, layer), trained.data.class_names.index(expression)
    gradient = jax.grad(lambda features: rest(trained.variables, x, features)[0, index])(maps[layer])
    heat = jax.nn.relu((maps[layer] * gradient.mean((1, 2), keepdims=True)).sum(-1))[0]
    return np.asarray(heat / jnp.maximum(heat.max(), 1e-12))


def augmented_faces(trained: Trained, face: np.ndarray, draws: int) -> np.ndarray:
    """Return the input of the network and `draws` random augmentations of it, uint8 [1 + draws, H, W, C]."""
    config, image = trained.config, face_input(face, trained.data.image_shape)[None]
    return augmented_images(image, draws, config.augment.to_dict(), config.seed)[0]


def prepared(trained: Trained, face: np.ndarray) -> jax.Array:
    """Return the normalized input of the network, [1, H, W, C]."""
    preprocess = trained.config.preprocess
    return normalize(jnp.asarray(face_input(face, trained.data.image_shape)[None]), preprocess.mean, preprocess.std)
