"""A simulator of low light: daylight images as a camera would take them in a dark scene. RGB uint8 [H, W, 3]."""

from typing import NamedTuple

import cv2
import numpy as np

SRGB_KNEE, LINEAR_KNEE = 0.04045, 0.0031308


class LowLight(NamedTuple):
    """Settings that turn a daylight image into a dark image; light is a fraction of the sensor's full scale."""

    exposure: float
    """Fraction of the light that remains."""
    gamma: float
    """Exponent on the remaining light: above 1, shadows lose more than highlights."""
    color_cast: tuple[float, float, float]
    """Gains on red, green and blue: the color of the lamps."""
    photons: float
    """Number of photons at full scale; fewer photons give more shot noise."""
    read_noise: float
    """Standard deviation of the sensor's own noise."""


def random_low_light(rng: np.random.Generator, exposure: tuple[float, float] = (0.03, 0.3)) -> LowLight:
    """Draw settings of a dark scene, the exposure log-uniformly from the range `exposure`."""
    warmth = rng.uniform(-0.1, 0.3)  # street lamps are warm more often than not
    return LowLight(
        exposure=float(np.exp(rng.uniform(*np.log(exposure)))),
        gamma=float(rng.uniform(1.0, 1.3)),
        color_cast=(1 + warmth, 1.0, 1 - warmth),
        photons=float(np.exp(rng.uniform(*np.log((500, 5000))))),
        read_noise=float(np.exp(rng.uniform(*np.log((0.0003, 0.003))))),
    )


def low_light(image: np.ndarray, settings: LowLight, rng: np.random.Generator) -> np.ndarray:
    """Darken an image as a camera would see it: exposure, gamma, color cast, shot and read noise in linear light.

    The Poisson distribution of shot noise is approximated by a normal distribution, which takes a tenth of the time.
    """
    light = LINEAR_OF_LEVEL * np.float32(settings.exposure)
    light = light[:, None] ** np.float32(settings.gamma) * np.array(settings.color_cast, np.float32)  # [256, 3]
    noise = np.sqrt(light / np.float32(settings.photons) + np.float32(settings.read_noise) ** 2)
    tables = [table[None].astype(np.float32) for table in (light, noise)]
    mean, deviation = (cv2.LUT(image, table) for table in tables)
    seen = mean + deviation * rng.standard_normal(image.shape, np.float32)
    return encode_srgb(seen)


def linear_of_srgb(levels: np.ndarray) -> np.ndarray:
    """Convert sRGB values from 0 to 255 to light from 0 to 1 (IEC 61966-2-1)."""
    values = np.asarray(levels, np.float32) / 255
    return np.where(values <= SRGB_KNEE, values / 12.92, ((values + 0.055) / 1.055) ** 2.4).astype(np.float32)


LINEAR_OF_LEVEL = linear_of_srgb(np.arange(256))
_STEPS = 1 << 14
_LIGHT = np.linspace(0, 1, _STEPS + 1, dtype=np.float32)
_SRGB = np.where(_LIGHT <= LINEAR_KNEE, _LIGHT * 12.92, 1.055 * _LIGHT ** (1 / 2.4) - 0.055)
LEVEL_OF_LIGHT = np.rint(_SRGB * 255).astype(np.uint8)
"""Table from light to sRGB: computing a power for every pixel would cost more than everything else."""


def encode_srgb(light: np.ndarray) -> np.ndarray:
    """Convert light, clipped to [0, 1], to sRGB uint8, exact to one level."""
    return LEVEL_OF_LIGHT[np.rint(np.clip(light, 0, 1) * _STEPS).astype(np.int32)]
