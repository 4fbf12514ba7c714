"""Pure JAX functions of arrays with fixed shapes; they import only JAX and, for constants, NumPy and SciPy."""
