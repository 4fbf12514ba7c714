"""Data sets by name, and the pipelines that feed them to a device."""
