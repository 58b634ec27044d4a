"""Those stages that have a model: torch is imported once, by whoever forks the processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.infer.diary import Diary
from benchmarks.infer.work import Classifier, Detector, Model, classify, detect
from shoestring.infer.batch import Answer


class Predict:
    """The model on fetched rows."""

    def __init__(self, diary: str = "") -> None:
        self._path = diary

    def setup(self, context: Any) -> None:
        """One thread: the cores are shared."""
        torch.set_num_threads(1)
        self._model = Model().eval()
        self._diary = Diary(self._path, "predict")

    def __call__(self, batch: Any) -> dict[str, Any]:
        self._diary.begin()
        with torch.inference_mode():
            values = self._model(torch.from_numpy(np.array(batch["rows"]))).numpy()
        self._diary.end(len(values))
        return {"value": values}


class Detect:
    """Objects of images, cut out: any number of items for each."""

    def __init__(self, diary: str = "") -> None:
        self._path = diary

    def setup(self, context: Any) -> None:
        """One thread."""
        torch.set_num_threads(1)
        self._model, self._diary = Detector().eval(), Diary(self._path, "detect")

    def __call__(self, batch: Any) -> Any:
        self._diary.begin()
        objects = np.asarray(batch["objects"])
        crops = detect(self._model, batch["pixels"], objects)
        self._diary.end(len(objects))
        return Answer({"crop": crops}, counts=objects.tolist())


class Classify:
    """The class of each object.

    Args:
        by_image: call the model with the objects of one image at a time, as the single stage does.
    """

    def __init__(self, diary: str = "", by_image: bool = False) -> None:
        self._path, self._by_image = diary, by_image

    def setup(self, context: Any) -> None:
        """One thread."""
        torch.set_num_threads(1)
        self._model, self._diary = Classifier().eval(), Diary(self._path, "classify")

    def __call__(self, batch: Any) -> dict[str, Any]:
        self._diary.begin()
        crops = np.asarray(batch["crop"])
        if self._by_image:
            images = np.asarray(batch["id"])
            parts = np.split(crops, np.flatnonzero(np.diff(images)) + 1)
            classes = np.concatenate([classify(self._model, part) for part in parts])
        else:
            classes = classify(self._model, crops)
        self._diary.end(len(classes))
        return {"class": classes}


class Both:
    """Detector and classifier in one stage: the classifier sees one image's objects at a time."""

    def __init__(self, diary: str = "") -> None:
        self._path = diary

    def setup(self, context: Any) -> None:
        """One thread."""
        torch.set_num_threads(1)
        self._detector, self._classifier = Detector().eval(), Classifier().eval()
        self._diary = Diary(self._path, "both")

    def __call__(self, batch: Any) -> dict[str, Any]:
        self._diary.begin()
        objects = np.asarray(batch["objects"])
        crops = detect(self._detector, batch["pixels"], objects)
        parts = np.split(crops, np.cumsum(objects)[:-1])
        classes = [classify(self._classifier, part).tolist() for part in parts]
        self._diary.end(len(objects))
        return {"class": classes}
