"""VGG-FER and its training step in PyTorch, to compare speed with; only its functions import torch."""

from collections.abc import Callable, Sequence

import numpy as np


def vgg_fer(
    image_shape: tuple[int, int, int],
    num_classes: int,
    widths: Sequence[int] = (64, 128, 256, 512),
    convs_per_block: int = 2,
    dense: Sequence[int] = (512,),
    dropout: float = 0.5,
):
    """The network of affect_jax.models.vgg as a torch module, images [B, C, H, W]."""
    from torch import nn

    height, width, channels = image_shape
    layers = []
    for features in widths:
        for _ in range(convs_per_block):
            layers += [nn.Conv2d(channels, features, 3, padding=1, bias=False), nn.BatchNorm2d(features), nn.ReLU()]
            channels = features
        layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    features = channels * (height >> len(widths)) * (width >> len(widths))
    for hidden in dense:
        layers += [nn.Linear(features, hidden), nn.ReLU(), nn.Dropout(dropout)]
        features = hidden
    return nn.Sequential(*layers, nn.Linear(features, num_classes))


def step_work(
    model, batch: dict[str, np.ndarray], learning_rate: float, updates: int, compiled: bool
) -> Callable[[], None]:
    """`updates` updates by Adam on this batch, which lies normalized on the device: cross-entropy, channels last."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device, memory_format=torch.channels_last).train()
    images = torch.tensor(batch["image"]).permute(0, 3, 1, 2).float() / 127.5 - 1
    images = images.to(device, memory_format=torch.channels_last)
    labels = torch.tensor(batch["label"]).long().to(device)
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    network = torch.compile(model) if compiled else model

    def work() -> None:
        for _ in range(updates):
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
        loss.item()

    return work
