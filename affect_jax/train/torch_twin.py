"""Our networks and their training step in PyTorch, to compare speed with; only its functions import torch.

PyTorch works in a process of its own: it comes with its own memory and threads, and ours change neither.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from affect_jax.models.mobilenet import STAGES


class Step(NamedTuple):
    """A training step: network by name with its options, optimizer, and how it is run."""

    network: str
    image_shape: tuple[int, int, int]
    num_classes: int
    options: dict
    optimizer: str
    learning_rate: float
    weight_decay: float
    compiled: bool


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


def mobilenet_v2(
    image_shape: tuple[int, int, int], num_classes: int, dropout: float = 0.2, input_size: Sequence[int] = ()
):
    """The network of affect_jax.models.mobilenet, as wide as in the paper, as a torch module, images [B, C, H, W]."""
    from torch import nn

    def conv_bn(channels: int, features: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list:
        convolution = nn.Conv2d(channels, features, kernel, stride, kernel // 2, groups=groups, bias=False)
        return [convolution, nn.BatchNorm2d(features)]

    class InvertedResidual(nn.Module):
        def __init__(self, channels: int, features: int, expansion: int, stride: int):
            super().__init__()
            hidden = channels * expansion
            layers = [*conv_bn(channels, hidden), nn.ReLU6(inplace=True)] if expansion != 1 else []
            layers += [*conv_bn(hidden, hidden, 3, stride, hidden), nn.ReLU6(inplace=True), *conv_bn(hidden, features)]
            self.layers, self.shortcut = nn.Sequential(*layers), stride == 1 and channels == features

        def forward(self, x):
            return x + self.layers(x) if self.shortcut else self.layers(x)

    class Input(nn.Module):
        def forward(self, x):
            x = x.repeat(1, 3, 1, 1) if x.shape[1] == 1 else x
            if not input_size:
                return x
            return nn.functional.interpolate(x, tuple(input_size), mode="bilinear", align_corners=False)

    layers, channels = [Input(), *conv_bn(3, 32, 3, 2), nn.ReLU6(inplace=True)], 32
    for expansion, features, repeats, first_stride in STAGES:
        for repeat in range(repeats):
            layers.append(InvertedResidual(channels, features, expansion, first_stride if repeat == 0 else 1))
            channels = features
    layers += [*conv_bn(channels, 1280), nn.ReLU6(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(1280, num_classes))


NETWORKS = {"vgg_fer": vgg_fer, "mobilenet_v2": mobilenet_v2}
OPTIMIZERS = ("adam", "adamw")


def start(step: Step, batch: dict[str, np.ndarray], updates: int) -> Callable[[], None]:
    """A process with this step in PyTorch; the function has it do `updates` updates on the batch and waits for them.

    RuntimeError, with PyTorch's own words, where it cannot. The process ends with this one.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, step, batch, updates), daemon=True)
    process.start()
    theirs.close()

    def work() -> None:
        ours.send(None)
        try:
            problem = ours.recv()
        except EOFError:
            problem = "its process ended"
        if problem:
            raise RuntimeError(f"PyTorch cannot run {step.network}: {problem}")

    return work


def _serve(connection, step: Step, batch: dict[str, np.ndarray], updates: int) -> None:
    """Do the step's updates each time something comes in, and send None, or what went wrong."""
    problem = work = None
    try:
        work = step_work(step, batch, updates)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        if not problem:
            try:
                work()
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
        connection.send(problem)


def step_work(step: Step, batch: dict[str, np.ndarray], updates: int) -> Callable[[], None]:
    """`updates` updates on this batch, which lies normalized on the device: cross-entropy, channels last."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = NETWORKS[step.network](step.image_shape, step.num_classes, **step.options)
    model = model.to(device, memory_format=torch.channels_last).train()
    images = torch.tensor(batch["image"]).permute(0, 3, 1, 2).float() / 127.5 - 1
    images = images.to(device, memory_format=torch.channels_last)
    labels = torch.tensor(batch["label"]).long().to(device)
    if step.optimizer == "adam":
        optimizer = torch.optim.Adam(model.parameters(), step.learning_rate)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), step.learning_rate, weight_decay=step.weight_decay)
    network = torch.compile(model) if step.compiled else model

    def work() -> None:
        for _ in range(updates):
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
        loss.item()

    return work
