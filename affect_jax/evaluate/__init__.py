"""Exact evaluation: metrics of predictions, and the pages that show them."""
