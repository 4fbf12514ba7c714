"""Shapes and gradients of networks, for their tests."""

import jax
import jax.numpy as jnp
import numpy as np
from reference.deterministic import IMAGENET_MEAN, IMAGENET_STD, images, random_weights, sample

from affect_jax.models import build_model
from affect_jax.models.pretrained import check_options, load_pretrained, merge, named_weights
from affect_jax.ops.photometric import normalize

FACES = np.random.default_rng(0).normal(size=(4, 48, 48, 1)).astype(np.float32)


def count(tree):
    """Return the number of values of a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shapes_of(model, x=FACES):
    """Return the shapes of (outputs, variables)."""
    return jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), jnp.asarray(x), False))


def assert_every_parameter_and_statistic_trains(model):
    """Check that gradients are finite and not all 0, and that BatchNorm statistics change, from random weights."""
    _, shapes = shapes_of(model)
    variables = merge(shapes, random_weights({name: value.shape for name, value in named_weights(shapes).items()}))

    def loss(params):
        logits, updates = model.apply(
            variables | {"params": params}, FACES, True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
        )
        return -jnp.sum(jax.nn.log_softmax(logits)[:, 0]), updates["batch_stats"]

    quick_to_compile = {"xla_backend_optimization_level": 0}
    gradient = jax.jit(jax.grad(loss, has_aux=True), compiler_options=quick_to_compile)
    grads, batch_stats = gradient(variables["params"])
    assert all(np.isfinite(g).all() and np.any(g != 0) for g in jax.tree.leaves(grads))
    changed = jax.tree.map(lambda a, b: np.any(a != b), batch_stats, variables["batch_stats"])
    assert all(jax.tree.leaves(changed))


def features_from_file(file, name, backbone, taps, **fields):
    """Return {tap: sample of the feature map} of the reference images, by a network with the weights of a file.

    `name` is that of the classifier, `backbone` the class of its backbone; both get `fields`.
    """
    pretrained = load_pretrained(file)
    model = build_model(name, num_classes=7, **fields)
    check_options(model, pretrained)
    pixels = (images() * IMAGENET_STD + IMAGENET_MEAN) * 255
    x = normalize(pixels, pretrained.preprocess.mean, pretrained.preprocess.std)
    variables = merge(shapes_of(model, x)[1], pretrained.values, excuse=("classifier/.*",))
    variables = {collection: tree["backbone"] for collection, tree in variables.items()}

    @jax.jit
    def features(variables):
        _, state = backbone(**fields).apply(variables, x, False, capture_intermediates=True)
        return {tap: state["intermediates"][tap]["__call__"][0] for tap in taps}

    return {tap: sample(np.asarray(found)) for tap, found in features(variables).items()}
