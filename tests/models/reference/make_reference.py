"""Write names.json and features.npz: names, shapes and features of the networks of torchvision, timm and Keras.

    pip install torch==2.13.0 torchvision==0.28.0 timm==1.0.31 keras==3.15.1 safetensors
    python make_reference.py DIRECTORY_OF_THE_IMAGENET_FILES

torchvision, timm and keras.applications (on torch) compute the features. The weights are those of the two ImageNet
files, or the random ones of deterministic.py.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import timm
import torch
import torchvision
from deterministic import images, random_weights, sample
from safetensors.torch import load_file

HERE = Path(__file__).parent
MOBILENET = {"C1": "features.1", "C2": "features.3", "C3": "features.6", "C4": "features.13", "C5": "features.17"}
MOBILENET |= {"head": "features.18", "logits": "classifier"}
TIMM_MOBILENET = {f"C{i}": f"blocks.{stage}" for i, stage in enumerate((0, 1, 2, 4, 6), start=1)}
TIMM_MOBILENET |= {"logits": "classifier"}
KERAS_MOBILENET = {"C1": "expanded_conv_project_BN", "C2": "block_2_add", "C3": "block_5_add", "C4": "block_12_add"}
KERAS_MOBILENET |= {"C5": "block_16_project_BN", "head": "out_relu", "logits": "predictions"}
RESNET = {"C2": "layer1", "C3": "layer2", "C4": "layer3", "C5": "layer4", "logits": "fc"}


def shapes_of(model):
    return {
        name: list(value.shape)
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def torch_features(model, taps):
    """Return {name: NumPy array, NHWC} of the images in a torch network in evaluation mode."""
    found = {}

    def keep(tap, module, inputs, output):
        found[tap] = output.permute(0, 2, 3, 1).numpy() if output.ndim == 4 else output.numpy()

    for tap, name in taps.items():
        model.get_submodule(name).register_forward_hook(partial(keep, tap))
    with torch.no_grad():
        model.eval()(torch.from_numpy(images()).permute(0, 3, 1, 2))
    return found


def load(model, weights):
    missing, unexpected = model.load_state_dict(weights, strict=False)
    absent = ("num_batches_tracked", "classifier.1.weight", "classifier.1.bias")
    assert not unexpected
    assert all(name.endswith(absent) or name.startswith(("layer4", "fc.")) for name in missing), missing
    return model


def random_torch(model, taps):
    weights = {name: torch.from_numpy(value) for name, value in random_weights(shapes_of(model)).items()}
    return shapes_of(model), torch_features(load(model, weights), taps)


def random_keras(model):
    names = [weight.path for weight in model.weights]
    shapes = {name: list(weight.shape) for name, weight in zip(names, model.weights, strict=True)}
    model.set_weights(list(random_weights(shapes).values()))
    taps = keras.Model(model.inputs, {tap: model.get_layer(name).output for tap, name in KERAS_MOBILENET.items()})
    return shapes, {tap: value.detach().numpy() for tap, value in taps(images(), training=False).items()}


def imagenet_mobilenet(directory):
    weights = load_file(directory / "mobilenet_v2_imagenet_features.safetensors")
    taps = {tap: name for tap, name in MOBILENET.items() if tap != "logits"}
    return torch_features(load(torchvision.models.mobilenet_v2(), weights), taps)


def imagenet_resnet50(directory):
    weights = load_file(directory / "resnet50_imagenet_conv1_to_layer3.safetensors")
    weights = {name: value.float() for name, value in weights.items()}
    model = torchvision.models.resnet50(norm_layer=partial(torch.nn.BatchNorm2d, eps=1.001e-5))
    for stage in (model.layer2, model.layer3):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    return torch_features(load(model, weights), {tap: RESNET[tap] for tap in ("C2", "C3", "C4")})


def main(directory):
    random = {
        "torchvision/mobilenet_v2": random_torch(
            torchvision.models.mobilenet_v2(width_mult=0.35, num_classes=10), MOBILENET
        ),
        "timm/mobilenet_v2": random_torch(timm.create_model("mobilenetv2_035", num_classes=10), TIMM_MOBILENET),
        "torchvision/resnet18": random_torch(torchvision.models.resnet18(num_classes=10), RESNET),
        "torchvision/resnet50": random_torch(torchvision.models.resnet50(num_classes=10), RESNET),
        "keras/mobilenet_v2": random_keras(
            keras.applications.MobileNetV2(
                images().shape[1:], 0.35, weights=None, classes=10, classifier_activation=None
            )
        ),
    }
    names = {network: shapes for network, (shapes, _) in random.items()}
    names["torchvision/resnet34"] = shapes_of(torchvision.models.resnet34())
    for depth in (18, 34, 50):
        ours, theirs = getattr(torchvision.models, f"resnet{depth}")(), timm.create_model(f"resnet{depth}")
        assert shapes_of(ours) == shapes_of(theirs), "timm's names of a ResNet are torchvision's"
    features = {network: found for network, (_, found) in random.items()}
    features["imagenet/mobilenet_v2"] = imagenet_mobilenet(directory)
    features["imagenet/resnet50"] = imagenet_resnet50(directory)
    arrays = {
        f"{network}/{tap}": sample(value) if value.ndim == 4 else value
        for network, found in features.items()
        for tap, value in found.items()
    }
    for name, value in arrays.items():
        print(name, value.shape, f"largest {np.abs(value).max():.3g}")
    (HERE / "names.json").write_text(json.dumps(names, separators=(",", ":")) + "\n")
    np.savez_compressed(HERE / "features.npz", **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
