"""Make the images of the documentation: python docs/make_figures.py [NAME ...]

NAME is prediction, augmentations, dark, batch_flow, curves or report; without a name, all are made. The images are
written to docs/images/. They show drawn faces and a public-domain photograph only. `curves` reads the records in
results/. `report` needs Chromium and a finished demo run: `make demo`.
"""

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps
from matplotlib.cbook import get_sample_data
from matplotlib.patches import FancyBboxPatch

from affect_jax.data import open_split
from affect_jax.data.images import read_image
from affect_jax.data.low_light import LowLight, low_light
from affect_jax.evaluate.detection import mistakes_of
from affect_jax.ops.augment import augment
from affect_jax.predict import load
from affect_jax.predict.drawing import draw_faces
from affect_jax.process import prepare_process
from affect_jax.runs.figures import series
from affect_jax.runs.workdir import Workdir, load_config, load_history, load_metrics

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
DEMO_REPORT = ROOT / "runs" / "fer_vgg_demo" / "report.html"
PHOTOGRAPH_FACE = (166, 95, 362, 340)
"""Box of the face in the photograph, in pixels, drawn by hand."""
BOX_COLORS = {"missed": (255, 220, 60), "wrong": (255, 70, 60), "right": (70, 230, 90)}
MARKERS = ("o", "s", "^", "v", "D", "x", "+", "P", "*", "<")
HOST, DEVICE, FILE, NEUTRAL = "#dbe8f7", "#dff0df", "#fbe8d3", "#eeeeee"


def photograph() -> np.ndarray:
    """Grace Hopper by James S. Davis, United States Navy: public domain. RGB uint8 [600, 512, 3]."""
    return read_image(get_sample_data("grace_hopper.jpg", asfileobj=False))


def prediction() -> None:
    """The bundled models on the photograph."""
    image = photograph()
    drawn = draw_faces(image, load()([image])[0])
    write(IMAGES / "prediction.jpg", drawn[:440])


def augmentations() -> None:
    """Drawn faces, each augmentation alone, and all of fer_vgg_best.py together."""
    names = ("happy", "surprise", "angry", "sad")
    split = open_split("drawn_faces", "train", num_examples=64)
    labels = split.labels()
    chosen = [int(np.flatnonzero(labels == split.class_names.index(name))[0]) for name in names]
    faces = split.read(np.array(chosen))["image"].astype(np.float32)
    recipe = runpy.run_path(str(ROOT / "configs" / "fer_vgg_best.py"))["get_config"]().augment.to_dict()
    columns = {
        "original": {},
        "rotation": {"rotation": 25.0},
        "shift": {"width_shift": 0.2, "height_shift": 0.2},
        "shear": {"shear": 25.0},
        "zoom": {"zoom": 0.3},
        "flip": {"horizontal_flip": True},
        "brightness": {"brightness": 0.25},
        "contrast": {"contrast": 0.8},
        "blur": {"blur_probability": 1.0, "blur_sigma": 2.0},
        "equalize": {"equalize_probability": 1.0},
        "erase": {"erase_probability": 1.0},
        "fer_vgg_best": recipe,
    }
    figure, axes = plt.subplots(len(faces), len(columns), figsize=(12, 4.3))
    for column, (title, settings) in enumerate(columns.items()):
        changed = augment(jax.random.key(3), faces, **settings)
        for row, image in enumerate(np.asarray(changed)):
            axes[row, column].imshow(image[..., 0], cmap="gray", vmin=0, vmax=255)
            axes[row, column].axis("off")
        axes[0, column].set_title(title, fontsize=10, family="monospace" if title == "fer_vgg_best" else None)
    figure.subplots_adjust(0.002, 0.002, 0.998, 0.94, 0.03, 0.03)
    save(figure, IMAGES / "augmentations.png")


def dark() -> None:
    """Detections by daylight and in the dark: the photograph and two drawn scenes."""
    detect = load().detector
    columns = [(photograph(), np.array([PHOTOGRAPH_FACE], np.float32))]
    scenes = open_split("drawn_scenes", "test", num_examples=3)
    columns += [(scene["image"], scene["boxes"]) for scene in map(scenes.read_image, (1, 2))]
    rows = []
    for is_dark in (False, True):
        row = []
        for image, boxes in columns:
            if is_dark:
                light = LowLight(
                    exposure=0.08, gamma=1.0, color_cast=(1.15, 1.0, 0.85), photons=800.0, read_noise=0.002
                )
                image = low_light(image, light, np.random.default_rng(0))
            found = detect([image])[0]
            truth = {"boxes": boxes, "label": np.zeros(len(boxes), int), "ignore": np.zeros(len(boxes), bool)}
            kinds = mistakes_of(truth, {**found, "label": np.zeros(len(found["boxes"]), int)})
            scale = 400 / image.shape[0]
            resized = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            for kind, color in BOX_COLORS.items():
                for x1, y1, x2, y2 in np.rint(kinds[kind] * scale).astype(int).tolist():
                    cv2.rectangle(resized, (x1, y1), (x2, y2), color, 2)
            row.append(np.pad(resized, [(3, 3), (3, 3), (0, 0)], constant_values=255))
        rows.append(np.concatenate(row, axis=1))
    write(IMAGES / "dark.jpg", np.concatenate(rows))


def batch_flow() -> None:
    """The way of a batch, from prepared data and config to metrics and report."""
    figure, axes = plt.subplots(figsize=(11, 6))
    axes.set(xlim=(0, 118), ylim=(0, 64))
    axes.axis("off")

    def box(x: float, y: float, width: float, height: float, title: str, text: str, color: str) -> None:
        patch = FancyBboxPatch(
            (x, y), width, height, "round,pad=0,rounding_size=1", facecolor=color, edgecolor="#777777"
        )
        axes.add_patch(patch)
        axes.text(x + width / 2, y + height - 2.4, title, ha="center", va="center", weight="bold", fontsize=10)
        axes.text(x + width / 2, y + (height - 3.6) / 2, text, ha="center", va="center", fontsize=8.5, linespacing=1.35)

    def arrow(start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
        axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#333333", "shrinkA": 0, "shrinkB": 0})
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        axes.text(x + 0.8, y, text, ha="left", va="center", fontsize=8, linespacing=1.3)

    box(2, 46, 26, 13, "Prepared data", "array_record shards, made once\nby scripts/prepare_data.py", HOST)
    box(
        34,
        46,
        28,
        13,
        "Iterator (grain)",
        "shuffle by seed, read, batch;\nfor detection: decode, and\ntransform image and boxes",
        HOST,
    )
    box(68, 46, 22, 13, "Config", "configs/NAME.py,\nchecked before the run", NEUTRAL)
    box(
        2, 23, 26, 15, "Resident data", "small classification sets:\ncopied once; a batch is\nthen only indices", DEVICE
    )
    box(34, 23, 56, 15, "Training step: one compiled function", "", DEVICE)
    box(96, 23, 21, 15, "Sums and counts", "fetched every\nlog_every_steps steps", DEVICE)
    box(34, 2, 24, 12, "Evaluation on val", "fixed order, last batch\npadded and masked", DEVICE)
    box(64, 2, 17, 12, "Checkpoints", "newest and best,\nwith the iterator", FILE)
    box(85, 2, 14, 12, "report.html", "best checkpoint\non val", FILE)
    box(103, 2, 14, 12, "metrics.jsonl", "and\nTensorBoard", FILE)
    stages = ("augment\nfaces", "normalize\npixels", "network", "loss", "gradient,\noptimizer,\nEMA")
    for number, stage in enumerate(stages):
        x = 35.5 + number * 10.8
        axes.add_patch(FancyBboxPatch((x, 24.5), 8.8, 8.5, "round,pad=0,rounding_size=0.6", fc="white", ec="#777777"))
        axes.text(x + 4.4, 28.7, stage, ha="center", va="center", fontsize=8)
        if number:
            arrow((x - 2, 28.7), (x, 28.7))
    arrow((28, 52.5), (34, 52.5))
    arrow((15, 46), (15, 38))
    arrow((28, 30.5), (34, 30.5))
    arrow((48, 46), (48, 38), "batch, uint8, split over\nthe devices")
    arrow((79, 46), (79, 38), "builders: network,\noptimizer, loss")
    arrow((90, 30.5), (96, 30.5))
    arrow((110, 23), (110, 14), "means")
    arrow((46, 23), (46, 14), "parameters,\nevery eval_every_epochs")
    arrow((58, 8), (64, 8))
    arrow((81, 8), (85, 8))
    for number, (name, color) in enumerate({"host": HOST, "devices": DEVICE, "run's folder": FILE}.items()):
        axes.add_patch(FancyBboxPatch((2, 11 - number * 4), 3, 2, "square,pad=0", facecolor=color, edgecolor="#777777"))
        axes.text(6.5, 12 - number * 4, name, va="center", fontsize=8.5)
    figure.subplots_adjust(0, 0, 1, 1)
    save(figure, IMAGES / "batch_flow.svg")


def curves() -> None:
    """Accuracy on val by epoch of the runs in results/ with seed 0, a test evaluation and at least three on val."""
    figure, panels = plt.subplots(2, 1, figsize=(10, 9), layout="constrained")
    runs = {file.parent.name: Workdir(file.parent) for file in sorted((ROOT / "results").glob("*/config.json"))}
    lowest = {"fer2013": 54, "ferplus": 78}  # the first evaluations of networks from random weights are lower
    for axes, (data_set, title) in zip(panels, {"fer2013": "FER2013", "ferplus": "FER+"}.items(), strict=True):
        configs = {name: load_config(run) for name, run in runs.items() if "test" in load_metrics(run)}
        histories = {
            name: series(load_history(runs[name]), "epoch", "val/accuracy")
            for name, config in configs.items()
            if config.data.name == data_set and config.seed == 0
        }
        long_enough = {name: history for name, history in histories.items() if len(history[0]) >= 3}
        best_first = sorted(long_enough.items(), key=lambda item: -item[1][1].max())
        for index, (name, (epochs, accuracy)) in enumerate(best_first):
            style = {"color": colormaps["tab10"].colors[index % 10], "marker": MARKERS[index % len(MARKERS)]}
            axes.plot(epochs, 100 * accuracy, markersize=5, linewidth=1.5, label=name, **style)
        axes.set(xscale="log", xlim=(0.9, 135), ylim=(lowest[data_set], None))
        axes.set(xlabel="epoch (logarithmic axis)", ylabel="accuracy on val, %", title=title)
        ticks = (1, 2, 3, 5, 10, 20, 50, 100)
        axes.set_xticks(ticks, map(str, ticks))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(title="best val first", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    save(figure, IMAGES / "curves.png")


def report() -> None:
    """The top of the demo run's report page, as Chromium shows it."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("report needs Chromium: install the Debian package chromium, or leave this image out")
    if not DEMO_REPORT.exists():
        sys.exit(f"{DEMO_REPORT} does not exist: run `make demo` first")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,1600"]
    output = IMAGES / "report.png"
    subprocess.run([browser, *options, f"--screenshot={output}", DEMO_REPORT.as_uri()], check=True, capture_output=True)
    colors = cv2.imread(str(output))
    cv2.imwrite(str(output), colors, [cv2.IMWRITE_PNG_COMPRESSION, 9])


FIGURES = {figure.__name__: figure for figure in (prediction, augmentations, dark, batch_flow, curves, report)}


def write(path: Path, image: np.ndarray) -> None:
    """Write an RGB image as JPEG."""
    cv2.imwrite(str(path), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])


def save(figure, path: Path) -> None:
    """Write a matplotlib figure; the same figure gives the same bytes."""
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def main(names: list[str]) -> None:
    """Make the named images, or all."""
    if unknown := set(names) - set(FIGURES):
        sys.exit(f"unknown image {', '.join(sorted(unknown))}; known are {', '.join(FIGURES)}")
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "affect_jax"
    prepare_process()
    IMAGES.mkdir(exist_ok=True)
    for name in names or FIGURES:
        FIGURES[name]()
        print(f"{name}: done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
