"""The models, the same in every arm."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.infer.server import WIDTH

TOKENS, HIDDEN, BLOCKS = 32, 512, 2
"""Of the model of the pipeline."""

IMAGE, CROP, MOST = 64, 16, 20
"""Sides of an image and of an object in it, and objects at most."""
DEPTH, NARROW = 40, 64
"""Of the classifier: deep and narrow, as models for small things are."""
CLASSES = 10


class Model(nn.Module):
    """The pipeline's model: rows [B, WIDTH] -> one number each, by residual blocks over TOKENS tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.places = nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))
            for _ in range(BLOCKS)
        )
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, rows: Tensor) -> Tensor:
        """[B, WIDTH] -> [B]."""
        x = rows[:, None, :] + self.places.weight
        for block in self.blocks:
            x = x + block(x)
        found: Tensor = self.head(x.mean(1))
        return found[:, 0]


class Detector(nn.Module):
    """A small convolutional network over images; what it finds is then cut out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(12)
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(), nn.Conv2d(32, 1, 3, padding=1),
        )  # fmt: skip

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [B, IMAGE, IMAGE, 3] -> scores of places [B, places]."""
        scores: Tensor = self.body(pixels.permute(0, 3, 1, 2).float() / 255)
        return scores.flatten(1)


class Classifier(nn.Module):
    """DEPTH residual blocks of width NARROW over an object's pixels: [N, CROP * CROP * 3] -> [N, CLASSES]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(13)
        self.enter = nn.Linear(CROP * CROP * 3, NARROW)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(NARROW), nn.Linear(NARROW, NARROW), nn.GELU(), nn.Linear(NARROW, NARROW)
            )
            for _ in range(DEPTH)
        )
        self.head = nn.Linear(NARROW, CLASSES)

    def forward(self, crops: Tensor) -> Tensor:
        """uint8 [N, CROP * CROP * 3] -> logits."""
        x = self.enter(crops.float() / 255)
        for block in self.blocks:
            x = x + block(x)
        logits: Tensor = self.head(x)
        return logits


def detect(model: Detector, pixels: NDArray[np.uint8], objects: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The likeliest places of each image, as many as it has objects, cut out: [objects, CROP * CROP * 3].

    An untrained network finds nothing in noise, so that how many there are is told with the image.
    """
    images = torch.from_numpy(np.array(pixels).reshape(-1, IMAGE, IMAGE, 3))
    with torch.inference_mode():
        places = model(images).topk(MOST, dim=1).indices.numpy()
    wide = IMAGE // 4
    crops = np.empty((int(objects.sum()), CROP, CROP, 3), np.uint8)
    at = 0
    for image, found, count in zip(images.numpy(), places, objects, strict=True):
        for place in found[:count]:
            top = min(int(place) // wide * 4, IMAGE - CROP)
            left = min(int(place) % wide * 4, IMAGE - CROP)
            crops[at] = image[top : top + CROP, left : left + CROP]
            at += 1
    return crops.reshape(len(crops), -1)


def classify(model: Classifier, crops: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The class of each object."""
    if not len(crops):
        return np.empty(0, np.int64)
    with torch.inference_mode():
        classes: NDArray[np.int64] = model(torch.from_numpy(np.array(crops))).argmax(1).numpy()
    return classes
