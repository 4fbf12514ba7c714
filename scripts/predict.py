"""Find faces and classify their expressions; the same as python -m affect_jax.predict, which documents the flags."""

import runpy

if __name__ == "__main__":
    runpy.run_module("affect_jax.predict", run_name="__main__", alter_sys=True)
