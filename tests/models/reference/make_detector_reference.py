"""Write detector.npz and detector_names.json: results, names and shapes of torchvision's Faster R-CNN.

    pip install torch==2.13.0 torchvision==0.28.0
    python make_detector_reference.py

With a CPU build of torch, put `torchvision_cpu` (torchvision's missing operators) on PYTHONPATH. The network is
ResNet-18 with FPN, with the random weights of deterministic.py. The sampler takes the first candidates instead of
random ones, so that losses can be compared. For each of CASES the file has the pyramid, the RPN's outputs, proposals
and detections in evaluation mode, and the four losses and the gradient of their sum in training mode.
"""

import contextlib
import json
from pathlib import Path

with contextlib.suppress(ImportError):
    import torchvision_cpu  # noqa: F401

import numpy as np
import torch
from deterministic import (
    CASES,
    DETECTOR,
    detector_inputs,
    detector_weights,
    gradient_direction,
    gradient_figures,
    sample,
)
from torchvision.models.detection import FasterRCNN, fasterrcnn_resnet50_fpn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.misc import FrozenBatchNorm2d

HERE = Path(__file__).parent


def first_candidates(self, matched_idxs):
    """Sample the first positives and then the first negatives instead of random ones."""
    chosen = []
    for labels in matched_idxs:
        positive, negative = torch.where(labels >= 1)[0], torch.where(labels == 0)[0]
        positive = positive[: int(self.batch_size_per_image * self.positive_fraction)]
        negative = negative[: self.batch_size_per_image - len(positive)]
        chosen.append([torch.zeros_like(labels, dtype=torch.uint8).index_fill(0, i, 1) for i in (positive, negative)])
    return tuple(zip(*chosen, strict=True))


def shapes_of(model):
    return {name: list(x.shape) for name, x in model.state_dict().items() if "num_batches" not in name}


def make_model():
    options = {f"{part}_{name}": value for part in ("rpn", "box") for name, value in DETECTOR[part].items()}
    generator = AnchorGenerator(DETECTOR["anchor_sizes"], (DETECTOR["aspect_ratios"],) * len(DETECTOR["anchor_sizes"]))
    model = FasterRCNN(
        resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=5),
        num_classes=3,
        rpn_anchor_generator=generator,
        **options,
    )
    model.transform.resize = lambda image, target: (image, target)
    weights = detector_weights(shapes_of(model))
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return model


def to_targets(truths):
    return [
        {"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels).long() + 1} for boxes, labels in truths
    ]


def evaluate(model, images):
    found = {}

    def keep_rpn(module, inputs, output):
        found["proposals"] = [boxes.numpy() for boxes in output[0]]

    def keep_head(module, inputs, output):
        found["pyramid"] = [level.permute(0, 2, 3, 1).numpy() for level in inputs[0]]
        found["objectness"] = [level.permute(0, 2, 3, 1).numpy() for level in output[0]]
        found["offsets"] = [level.permute(0, 2, 3, 1).numpy() for level in output[1]]

    hooks = [model.rpn.register_forward_hook(keep_rpn), model.rpn.head.register_forward_hook(keep_head)]
    with torch.no_grad():
        detections = model.eval()([torch.from_numpy(image).permute(2, 0, 1) / 255.0 for image in images])
    for hook in hooks:
        hook.remove()
    arrays = {
        f"{kind}/{level}": sample(value) if kind == "pyramid" else value[:, ::3, ::3]
        for kind in ("pyramid", "objectness", "offsets")
        for level, value in enumerate(found[kind])
    }
    for i, (proposals, detected) in enumerate(zip(found["proposals"], detections, strict=True)):
        arrays[f"proposals/{i}"] = proposals
        arrays |= {f"{name}/{i}": value.numpy() for name, value in detected.items()}
    return arrays


def train(model, images, truths):
    model.zero_grad()
    losses = model.train()([torch.from_numpy(p).permute(2, 0, 1) / 255.0 for p in images], to_targets(truths))
    sum(losses.values()).backward()
    arrays = {name: value.detach().numpy() for name, value in losses.items()}
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
    return arrays | {
        f"gradient/{name}": gradient_figures(value, gradient_direction(name, value.shape))
        for name, value in gradients.items()
    }


def write_names(resnet18):
    """Write the names and shapes of two detectors, and the names that torchvision trains from ImageNet weights."""
    coco = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    # as fasterrcnn_resnet50_fpn(weights_backbone="DEFAULT") builds it, without the download
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    trained = [name for name, value in FasterRCNN(backbone, num_classes=91).named_parameters() if value.requires_grad]
    names = {
        "resnet18": shapes_of(resnet18),
        "fasterrcnn_resnet50_fpn": shapes_of(coco),
        "trained_from_imagenet": trained,
    }
    (HERE / "detector_names.json").write_text(json.dumps(names, separators=(",", ":")) + "\n")


def main():
    BalancedPositiveNegativeSampler.__call__ = first_candidates
    model, arrays = make_model(), {}
    for case in CASES:
        images, truths = detector_inputs(case)
        found = evaluate(model, images) | train(model, images, truths)
        arrays |= {f"{case}/{name}": value for name, value in found.items()}
        for name in sorted(found):
            if "gradient" not in name:
                print(case, name, found[name].shape, f"largest {np.abs(found[name]).max(initial=0):.4g}")
    np.savez_compressed(HERE / "detector.npz", **arrays)
    write_names(model)


if __name__ == "__main__":
    main()
