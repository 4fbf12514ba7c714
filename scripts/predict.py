"""Find faces and classify their expressions; the same as python -m affect_jax.predict."""

import runpy

runpy.run_module("affect_jax.predict", run_name=__name__, alter_sys=True)
