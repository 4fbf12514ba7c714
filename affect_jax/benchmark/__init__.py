"""Steps, loops and prediction timed next to PyTorch, torchvision and other packages."""
