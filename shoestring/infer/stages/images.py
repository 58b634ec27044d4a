"""A stage that decodes images with Pillow (source: ours).

Reads a column of encoded files and makes `pixels`, [H, W, 3] a row. An image that cannot be decoded gets its
error, and the others go on.
"""

from __future__ import annotations

import io
import warnings
from typing import Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import Field

from shoestring.base.config import Config
from shoestring.base.errors import first_line
from shoestring.infer.batch import Answer, Batch, StageContext
from shoestring.infer.config import StageConfig
from shoestring.infer.stages.columns import Array, column_of, normal_pixels, options_of


class ImagesOptions(Config):
    """Options of a stage of kind `images`.

    Attributes:
        column: of encoded images, as bytes.
        output: the column made.
        size: (height, width) that every image is resized to.
        fit: `stretch`: to that size; `crop`: so that it covers it, then its middle.
        dtype: `uint8`: 0 to 255; `float32`: 0 to 1, less `mean`, by `std`.
        mean, std: of the three channels, for float32.
        layout: `hwc` or `chw`.
        max_pixels: an image of more is refused unread: a small file can hold a huge one.
    """

    column: str = "bytes"
    output: str = "pixels"
    size: tuple[int, int] = (224, 224)
    fit: Literal["stretch", "crop"] = "stretch"
    dtype: Literal["uint8", "float32"] = "uint8"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    layout: Literal["hwc", "chw"] = "hwc"
    max_pixels: int = Field(default=100_000_000, ge=1)


def make(config: StageConfig, context: StageContext) -> ImagesStage:
    """The stage; see `shoestring.infer.stages.loading`."""
    return ImagesStage(options_of(ImagesOptions, config))


class ImagesStage:
    """Decodes, converts to RGB, resizes."""

    def __init__(self, options: ImagesOptions) -> None:
        self._options = options

    def __call__(self, batch: Batch) -> Answer:
        """`pixels` of all rows; those that cannot be decoded get an error."""
        options = self._options
        height, width = options.size
        out = np.zeros((len(batch), height, width, 3), np.uint8)
        errors: dict[int, str] = {}
        for place, data in enumerate(column_of(batch, options.column, "options.column")):
            if not isinstance(data, bytes):
                errors[place] = f"{options.column} holds no bytes"
                continue
            try:
                out[place] = self._decode(data)
            except MemoryError:  # the batch's, not the row's: it is tried again with fewer
                raise
            except UnidentifiedImageError:
                errors[place] = "the image cannot be decoded: its format is unknown"
            except Exception as error:  # noqa: BLE001  Pillow's decoders raise whatever comes up: it is the row's
                errors[place] = f"the image cannot be decoded: {first_line(error)}"
        return Answer({options.output: self._finished(out)}, errors=errors)

    def _decode(self, data: bytes) -> Array:
        """[H, W, 3] uint8 of one file."""
        with warnings.catch_warnings():
            # A hint that an image is large is decided by our own bound, not by Pillow's.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
                if width * height > self._options.max_pixels:
                    raise ValueError(
                        f"it has {width}x{height} pixels, more than max_pixels={self._options.max_pixels}"
                    )
                image.draft("RGB", self._options.size[::-1])  # JPEG: decode no more than is needed
                return np.asarray(self._resized(image.convert("RGB")))

    def _resized(self, image: Any) -> Any:
        height, width = self._options.size
        box = None
        if self._options.fit == "crop":
            scale = min(image.width / width, image.height / height)
            left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
            box = (left, top, left + width * scale, top + height * scale)
        return image.resize((width, height), Image.Resampling.BILINEAR, box=box)

    def _finished(self, pixels: Array) -> Array:
        options = self._options
        if options.dtype == "float32":
            pixels = normal_pixels(pixels, options.mean, options.std)
        return pixels.transpose(0, 3, 1, 2) if options.layout == "chw" else pixels
