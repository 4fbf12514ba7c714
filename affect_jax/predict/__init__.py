"""Find faces and classify expressions with trained networks: faces = affect_jax.predict.load()(images)."""

from affect_jax.predict.reader import load

__all__ = ["load"]
