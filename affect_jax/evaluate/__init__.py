"""Exact metrics of predictions, their figures, and the sections of report pages that show them."""
