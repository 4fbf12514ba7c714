"""Tasks: all that differs between the kinds of run."""
