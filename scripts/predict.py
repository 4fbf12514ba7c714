"""Find faces and classify their expressions; the same as python -m affect_jax.predict."""

from affect_jax import command_line

command_line.exit_on_interrupt()  # before the slow imports

import runpy

runpy.run_module("affect_jax.predict", run_name=__name__, alter_sys=True)
