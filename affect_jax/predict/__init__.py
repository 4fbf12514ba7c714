"""Find faces and classify expressions with trained networks: faces = affect_jax.predict.load()(images)."""

__all__ = ["load"]


def __getattr__(name: str):
    # Imported when it is used: python -m affect_jax.predict handles Ctrl-C before the slow imports.
    if name == "load":
        from affect_jax.predict.reader import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
