"""A run: state, optimizer, steps, checkpoints, writers and the loop that joins them."""
