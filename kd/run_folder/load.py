"""The student of a finished run, for use: it refuses what are no pixels, and answers for pictures in files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

import kd.data.folder  # noqa: F401 (registers what reads pictures from files)
from kd.data.decode import PLAIN, File, Reading, decode, pixels
from kd.data.images import images_of
from kd.errors import InputError
from kd.registry import modules, sources
from kd.run_folder.student import load_student
from kd.run_folder.summary import read_summary

log = logging.getLogger(__name__)

Picture = str | Path | Image.Image


class Prediction(NamedTuple):
    """The likeliest class, and the probability of each by name, in the order of the classes."""

    label: str
    probability: float
    probabilities: dict[str, float]


class Preparation(NamedTuple):
    """How pictures of any size become images: the shorter side is resized, then the middle cut out.

    ``resize`` in pixels, bilinear, without aliasing; ``crop`` is [height, width].
    """

    resize: int
    crop: list[int]

    def __str__(self) -> str:
        size = "x".join(map(str, self.crop))
        return f"the shorter side is resized to {self.resize} pixels (bilinear, antialiased), the middle {size} cut out"


def preparation_of(data: Mapping[str, Any]) -> Preparation | None:
    """How a run's data, as its summary describes it, prepares pictures; None where that is a matter of its own."""
    target, (_, height, width) = str(data["config"].get("_target_")), data["shape"]
    if modules.name_of(target):  # as kd.data.pictures does in evaluation
        return Preparation(height * 8 // 7, [height, width])
    return Preparation(min(height, width), [height, width]) if sources.name_of(target) else None


def reading_of(data: Mapping[str, Any]) -> Reading:
    """How a run's data, as its summary describes it, reads files."""
    config = data["config"] if modules.name_of(str(data["config"].get("_target_"))) else {}
    reading = Reading(**{key: config[key] for key in Reading._fields if key in config})
    reading.check()
    return reading


def load(folder: str | Path, trust: bool = False) -> nn.Module:
    """The student of a finished run, in eval mode: images [B, C, H, W] (uint8, or float in [0, 1]) to logits.

    Its attribute ``net`` is the bare network, ``classes`` the names of the classes, None where the run's data
    named none, and ``predict(picture)`` answers for pictures of any size; see :class:`Predictor`.

    Args:
        folder: a run folder.
        trust: whether a class that is not registered with kd may be imported, as the run folder names it.

    Raises:
        InputError: no finished run, or a student that is not registered and not trusted; and of the student, images
            that are no pixels.
    """
    student = load_student(folder, trust)
    data = read_summary(Path(folder))["data"]
    student.register_forward_pre_hook(Pixels(list(data["shape"])))
    names = student.classes or list(map(str, range(data["classes"])))
    preparation = preparation_of(data), reading_of(data)
    student.predict = Predictor(student, names, data["shape"][0], *preparation)  # type: ignore[assignment, arg-type]
    return student


class Pixels:
    """Refuses images that a student was not trained on; whole numbers in 0..255 are taken as uint8."""

    def __init__(self, shape: list[int]) -> None:
        self.shape = shape

    def __call__(self, student: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return None  # what looks at numbers cannot be part of a graph
        images = images_of(given[0], "the images", log.debug, self.shape)
        return (images, *given[1:])


class Predictor:
    """Answers of a student for pictures.

    Args:
        student: images to logits.
        names: of the classes.
        channels: of the images.
        preparation: from pictures to images; None if it is not known.
        reading: from files to pictures.
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
    def __call__(self, pictures: Picture | Sequence[Picture]) -> Prediction | list[Prediction]:
        """The prediction for a path or a Pillow image; a list of them for a list.

        Pictures are resized and cropped as in the run's evaluation.

        Raises:
            InputError: what is no picture, or a run whose data module prepares pictures in a way of its own.
        """
        one = isinstance(pictures, (str, Path, Image.Image))
        if not one and not isinstance(pictures, (list, tuple)):
            raise InputError(
                f"predict takes a path, a Pillow image or a list of them, got a {type(pictures).__name__}; for images "
                "[B, C, H, W] call student(images)"
            )
        given: Sequence[Any] = [pictures] if one else pictures  # type: ignore[assignment]
        if not given:
            return []
        device = next((p.device for p in self.student.parameters()), None)
        images = torch.stack([self._image(picture) for picture in given]).to(device)
        training = self.student.training
        rows = self.student.eval()(images).float().softmax(-1).cpu()
        self.student.train(training)
        found = [self._prediction(row) for row in rows]
        return found[0] if one else found

    def _prediction(self, row: Tensor) -> Prediction:
        best = int(row.argmax())
        return Prediction(self.names[best], float(row[best]), dict(zip(self.names, row.tolist())))

    def _image(self, picture: Picture) -> Tensor:
        from torchvision.transforms.v2 import functional as F  # takes a second to import

        if self.preparation is None:
            raise InputError(
                "the run's own data module prepares pictures in a way that kd does not know: do the same, and call "
                "student(images) with images [B, C, H, W]"
            )
        image = self._decoded(picture)
        resized = F.resize(image, [self.preparation.resize], antialias=True)
        return F.center_crop(resized, self.preparation.crop)

    def _decoded(self, picture: Picture) -> Tensor:
        if isinstance(picture, Image.Image):
            image = pixels(picture, self.reading)
        elif isinstance(picture, (str, Path)):
            image = decode(File(str(picture), -1), self.reading)
        else:
            raise InputError(f"predict takes a path or a Pillow image, got a {type(picture).__name__}")
        if self.channels == 1:
            from torchvision.transforms.v2 import functional as F

            grey = bool((image[0] == image[1]).all() and (image[0] == image[2]).all())
            return image[:1] if grey else F.rgb_to_grayscale(image)
        if self.channels != 3:
            raise InputError(f"the student takes images of {self.channels} channels, which pictures in files have not")
        return image
