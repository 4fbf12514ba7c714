"""Show augmented images: python scripts/show_augmentations.py --config=configs/fer_vgg.py --out=augmentations.png

Each row shows an image of the training split, then the same image after several random augmentations by the config. A
detector's images are shown with their boxes; boxes that training ignores are yellow.
"""

from affect_jax import command_line

command_line.exit_on_interrupt()  # before the slow imports

from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", help_string="configs/NAME.py, or configs/NAME.py:demo")
flags.mark_flag_as_required("config")
OUT = flags.DEFINE_string("out", "augmentations.png", "The image file to write.")
IMAGES = flags.DEFINE_integer("images", 8, "Number of images, one in each row.", lower_bound=1)
DRAWS = flags.DEFINE_integer("draws", 11, "Number of augmented versions of each image.", lower_bound=1)
ENLARGE = flags.DEFINE_integer("enlarge", 2, "Largest factor by which pixels are enlarged.", lower_bound=1)
WIDEST = 4096
"""Width in pixels above which the result is shrunk."""


def main(argv):
    command_line.reject_arguments(argv, "set config fields with --config.NAME=VALUE")
    import cv2
    import numpy as np

    from affect_jax.config_checks import validate
    from affect_jax.files import whole_file
    from affect_jax.tasks import build_task

    if not OUT.value.lower().endswith((".png", ".jpg", ".jpeg")):
        raise ValueError(f"--out={OUT.value}; the name must end in .png or .jpg")
    logging.set_verbosity(logging.ERROR)  # tfds logs every file
    validate(CONFIG.value)
    task = build_task(CONFIG.value)
    rows = task.augmented_samples(task.open_split("train"), IMAGES.value, DRAWS.value)
    framed = np.pad(rows, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)])
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in framed])
    scale = min(ENLARGE.value, WIDEST / sheet.shape[1])
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    sheet = cv2.resize(sheet, None, fx=scale, fy=scale, interpolation=interpolation)
    sheet = sheet.reshape(*sheet.shape[:2], rows.shape[-1])  # OpenCV drops a single channel
    is_encoded, content = cv2.imencode(Path(OUT.value).suffix, sheet if sheet.shape[-1] == 1 else sheet[..., ::-1])
    if not is_encoded:
        raise ValueError(f"{OUT.value}: {len(sheet):,} rows of pixels are too many for the format; use fewer --images")
    with whole_file(OUT.value) as file:
        file.write(content)
    print(f"{OUT.value}: {len(rows)} images, each original followed by {DRAWS.value} augmented versions")


if __name__ == "__main__":
    command_line.run(main)
