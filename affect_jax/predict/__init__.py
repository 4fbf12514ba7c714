"""Trained networks put to use: affect_jax.predict.load()(images) names the expressions of the faces in pictures."""

from affect_jax.predict.reader import load

__all__ = ["load"]
