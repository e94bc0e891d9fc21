"""The test images and class names of a study, loaded from the dataset that its summary names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from kd.data.datamodule import ImageData
from kd.errors import InputError
from kd.registry import check_registered, modules, sources
from kd.report.svg import png
from kd.train import assemble

LARGEST = 96  # pixels; larger images are scaled down


class StudyImages:
    """The test images of the runs.

    Args:
        summary: a run's; its data must be registered with kd, as a run folder may come from an untrusted source.

    Raises:
        InputError: the data is not registered, not on this machine, or not that of the run.
    """

    def __init__(self, summary: Mapping[str, Any]) -> None:
        data = _load(summary)
        if not data.parts:
            raise InputError("the images of a custom data module cannot be looked up by position")
        if data.describe()["sha256"] != summary["data"].get("sha256"):
            raise InputError("the dataset on this machine is not that of the runs: its sha256 differs")
        self._data = data
        self.names: Sequence[str] = tuple(str(name) for name in data.names or ())

    def check(self, labels: NDArray[np.integer]) -> None:
        """Checks that the predictions are of these images.

        Raises:
            InputError: the labels differ.
        """
        if not np.array_equal(labels, self._data.labels("test").numpy()):
            raise InputError("the test labels on this machine differ from those of the predictions")

    def data_uri(self, position: int) -> str:
        """One image as a PNG in a data URI."""
        pixels = self._data.image("test", position)
        if max(pixels.shape[1:]) > LARGEST:
            size = [max(1, side * LARGEST // max(pixels.shape[1:])) for side in pixels.shape[1:]]
            pixels = F.interpolate(pixels[None].float(), size, mode="bilinear", antialias=True)[0].round()
        pixels = pixels[:1] if len(pixels) < 3 else pixels[:3]
        array = pixels.clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
        return png(array[..., 0] if array.shape[2] == 1 else array)


def _load(summary: Mapping[str, Any]) -> ImageData:
    node = dict(summary["data"].get("config") or {})
    check_registered(node, "data")
    target = str(node.get("_target_"))
    if not (sources.is_registered(target) or modules.is_registered(target)):
        raise InputError(f"data: {target!r} is not a dataset registered with kd; it is not run")
    if sources.name_of(target) == "huggingface" and not Path(str(node.get("name"))).is_dir():
        raise InputError("a dataset of the Hugging Face hub would need the network")
    if "download" in node:
        node["download"] = False
    return assemble.data({"data": node, "seed": summary["seed"]})
