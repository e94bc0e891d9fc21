"""The student of a finished run, for inference: it accepts pixels only, and classifies image files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

import kd.data.folder  # noqa: F401 (registers the data modules of image files)
from kd.data.decode import PLAIN, File, Reading, decode, pixels
from kd.data.images import images_of
from kd.errors import InputError
from kd.registry import modules, sources
from kd.run_folder.student import load_student
from kd.run_folder.summary import read_summary

log = logging.getLogger(__name__)

ImageInput = str | Path | Image.Image


class Prediction(NamedTuple):
    """The most likely class, and the probability of each by name, in the order of the classes."""

    label: str
    probability: float
    probabilities: dict[str, float]


class Preparation(NamedTuple):
    """How images of any size are prepared: the shorter side is resized, then the centre is cropped.

    ``resize`` in pixels, bilinear, antialiased; ``crop`` is [height, width].
    """

    resize: int
    crop: list[int]

    def __str__(self) -> str:
        size = "x".join(map(str, self.crop))
        resized = f"the shorter side is resized to {self.resize} pixels (bilinear, antialiased)"
        return f"{resized}, then the central {size} is cropped"


def preparation_of(data: Mapping[str, Any]) -> Preparation | None:
    """How a run's data, as described in its summary, prepares images; None for a custom data module."""
    target, (_, height, width) = str(data["config"].get("_target_")), data["shape"]
    if modules.name_of(target):  # as in evaluation
        return Preparation(height * 8 // 7, [height, width])
    return Preparation(min(height, width), [height, width]) if sources.name_of(target) else None


def reading_of(data: Mapping[str, Any]) -> Reading:
    """How a run's data, as described in its summary, reads files."""
    config = data["config"] if modules.name_of(str(data["config"].get("_target_"))) else {}
    reading = Reading(**{key: config[key] for key in Reading._fields if key in config})
    reading.check()
    return reading


def load(folder: str | Path, trust: bool = False) -> nn.Module:
    """The student of a finished run, in eval mode: images [B, C, H, W] (uint8, or float in [0, 1]) to logits.

    Its attribute ``net`` is the bare network, ``classes`` the names of the classes, None if the run's data
    has none, and ``predict(image)`` classifies images of any size; see :class:`Predictor`.

    Args:
        folder: a run folder.
        trust: whether a class that is not registered with kd may be imported, as the run folder names it.

    Raises:
        InputError: no finished run, or a student that is neither registered nor trusted. The student itself raises it
            for inputs that are not pixels.
    """
    student = load_student(folder, trust)
    data = read_summary(Path(folder))["data"]
    student.register_forward_pre_hook(Pixels(list(data["shape"])))
    names = student.classes or list(map(str, range(data["classes"])))
    preparation = preparation_of(data), reading_of(data)
    student.predict = Predictor(student, names, data["shape"][0], *preparation)  # type: ignore[assignment, arg-type]
    return student


class Pixels:
    """Refuses inputs unlike those that a student was trained on; whole numbers in 0..255 are converted to uint8."""

    def __init__(self, shape: list[int]) -> None:
        self.shape = shape

    def __call__(self, student: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return None  # a check of values cannot be part of a graph
        images = images_of(inputs[0], "the images", log.debug, self.shape)
        return (images, *inputs[1:])


class Predictor:
    """Predictions of a student for image files and Pillow images.

    Args:
        student: images to logits.
        names: the names of the classes.
        channels: the number of channels of the images.
        preparation: how images are resized and cropped; None if unknown.
        reading: how files are decoded.
    """

    def __init__(
        self,
        student: nn.Module,
        names: Sequence[str],
        channels: int,
        preparation: Preparation | None,
        reading: Reading = PLAIN,
    ) -> None:
        self.student, self.names, self.channels = student, list(names), channels
        self.preparation, self.reading = preparation, reading

    @torch.no_grad()
    def __call__(self, images: ImageInput | Sequence[ImageInput]) -> Prediction | list[Prediction]:
        """The prediction for a path or a Pillow image; a list of predictions for a list.

        Images are resized and cropped as in the run's evaluation.

        Raises:
            InputError: an input that is not an image, or a run with a custom data module.
        """
        single = isinstance(images, (str, Path, Image.Image))
        if not single and not isinstance(images, (list, tuple)):
            raise InputError(
                f"predict takes a path, a Pillow image or a list of them, got a {type(images).__name__}; for images "
                "[B, C, H, W] call student(images)"
            )
        inputs: Sequence[Any] = [images] if single else images  # type: ignore[assignment]
        if not inputs:
            return []
        device = next((p.device for p in self.student.parameters()), None)
        batch = torch.stack([self._prepared(image) for image in inputs]).to(device)
        training = self.student.training
        rows = self.student.eval()(batch).float().softmax(-1).cpu()
        self.student.train(training)
        predictions = [self._prediction(row) for row in rows]
        return predictions[0] if single else predictions

    def _prediction(self, row: Tensor) -> Prediction:
        best = int(row.argmax())
        return Prediction(self.names[best], float(row[best]), dict(zip(self.names, row.tolist())))

    def _prepared(self, image: ImageInput) -> Tensor:
        from torchvision.transforms.v2 import functional as F  # takes a second to import

        if self.preparation is None:
            raise InputError(
                "the run's custom data module prepares images in its own way: prepare them likewise, and call "
                "student(images) with images [B, C, H, W]"
            )
        resized = F.resize(self._decoded(image), [self.preparation.resize], antialias=True)
        return F.center_crop(resized, self.preparation.crop)

    def _decoded(self, source: ImageInput) -> Tensor:
        if isinstance(source, Image.Image):
            image = pixels(source, self.reading)
        elif isinstance(source, (str, Path)):
            image = decode(File(str(source), -1), self.reading)
        else:
            raise InputError(f"predict takes a path or a Pillow image, got a {type(source).__name__}")
        if self.channels == 1:
            from torchvision.transforms.v2 import functional as F

            grey = bool((image[0] == image[1]).all() and (image[0] == image[2]).all())
            return image[:1] if grey else F.rgb_to_grayscale(image)
        if self.channels != 3:
            raise InputError(f"the student takes images with {self.channels} channels; image files have 1 or 3")
        return image
