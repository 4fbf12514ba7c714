"""Trained networks as StableHLO and ONNX, and the card of the bundled weights."""
