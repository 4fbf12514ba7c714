"""A look inside a classifier: the maps that its parts make of a face, and what of the face speaks for a class.

H W a picture's, C channels.
"""

import jax
import jax.numpy as jnp
import numpy as np

from affect_jax.ops.photometric import normalize
from affect_jax.predict.reader import face_input, network
from affect_jax.runs.model_file import Trained
from affect_jax.tasks.classification import augmented_images
from affect_jax.train.state import apply_from, feature_maps


def maps_of_face(trained: Trained, face: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs float32 [h, w, C] of the network's parts, in order, on a face uint8 RGB [H, W, 3] of any size."""
    maps = feature_maps(network(trained), trained.variables, prepared(trained, face))
    return {name: np.asarray(features[0]) for name, features in maps.items()}


def class_activation(trained: Trained, face: np.ndarray, expression: str, part: str = "") -> np.ndarray:
    """Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391): float32 [h, w], 0 to 1, of what speaks for an expression.

    `part` is one of maps_of_face; the default is the last with more than one place. All 0 where nothing speaks for it.
    ValueError on an expression or a part that the network does not have.
    """
    model, x = network(trained), prepared(trained, face)
    if expression not in trained.data.class_names:
        raise ValueError(f"unknown expression {expression!r}; known are {', '.join(trained.data.class_names)}")
    maps = feature_maps(model, trained.variables, x)
    part = part or [name for name, features in maps.items() if min(features.shape[1:3]) > 1][-1]
    if part not in maps:
        raise ValueError(f"unknown part {part!r}; known are {', '.join(maps)}")
    beyond, place = apply_from(model, part), trained.data.class_names.index(expression)
    gradient = jax.grad(lambda features: beyond(trained.variables, x, features)[0, place])(maps[part])
    heat = jax.nn.relu((maps[part] * gradient.mean((1, 2), keepdims=True)).sum(-1))[0]
    return np.asarray(heat / jnp.maximum(heat.max(), 1e-12))


def augmented_faces(trained: Trained, face: np.ndarray, draws: int) -> np.ndarray:
    """The face as the network gets it, then `draws` times as its training changed faces: uint8 [1 + draws, H, W, C]."""
    config, image = trained.config, face_input(face, trained.data.image_shape)[None]
    return augmented_images(image, draws, config.augment.to_dict(), config.seed)[0]


def prepared(trained: Trained, face: np.ndarray) -> jax.Array:
    """The network's input [1, H, W, C]."""
    preprocess = trained.config.preprocess
    return normalize(jnp.asarray(face_input(face, trained.data.image_shape)[None]), preprocess.mean, preprocess.std)
