"""Export trained networks as StableHLO and ONNX, and write the model card of the bundled weights."""
