"""Facial-expression models in JAX: train, evaluate and report them."""
