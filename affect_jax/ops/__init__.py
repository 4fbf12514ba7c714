"""Arrays in, arrays out: pure jax functions of fixed shapes that import nothing but jax."""
