"""The test images and class names of a study, built again from what its summary says."""

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

LARGEST = 96  # pixels; what is larger is shown smaller


class StudyImages:
    """The images that runs were tested on.

    Args:
        summary: of a run; its data must be registered with kd, as a run folder may come from a stranger.

    Raises:
        InputError: data that is not registered, not on this machine, or not what the run saw.
    """

    def __init__(self, summary: Mapping[str, Any]) -> None:
        data = _built(summary)
        if not data.parts:
            raise InputError("images of a data module of one's own cannot be looked up by position")
        if data.describe()["sha256"] != summary["data"].get("sha256"):
            raise InputError("the data here is not what the runs saw: its sha256 differs")
        self._data = data
        self.names: Sequence[str] = tuple(str(name) for name in data.names or ())

    def check(self, labels: NDArray[np.integer]) -> None:
        """Raises InputError unless the labels are those that the predictions stand for."""
        if not np.array_equal(labels, self._data.labels("test").numpy()):
            raise InputError("the test labels here are not those of the predictions")

    def shown(self, position: int) -> str:
        """One image as a data URI."""
        pixels = self._data.image("test", position)
        if max(pixels.shape[1:]) > LARGEST:
            size = [max(1, side * LARGEST // max(pixels.shape[1:])) for side in pixels.shape[1:]]
            pixels = F.interpolate(pixels[None].float(), size, mode="bilinear", antialias=True)[0].round()
        pixels = pixels[:1] if len(pixels) < 3 else pixels[:3]
        array = pixels.clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
        return png(array[..., 0] if array.shape[2] == 1 else array)


def _built(summary: Mapping[str, Any]) -> ImageData:
    node = dict(summary["data"].get("config") or {})
    check_registered(node, "data")
    target = str(node.get("_target_"))
    if not (sources.is_registered(target) or modules.is_registered(target)):
        raise InputError(f"data names {target!r}, which is no data set that kd knows; it is not run")
    if sources.name_of(target) == "huggingface" and not Path(str(node.get("name"))).is_dir():
        raise InputError("a data set of the Hugging Face hub would have to be asked for over the network")
    if "download" in node:
        node["download"] = False
    return assemble.data({"data": node, "seed": summary["seed"]})
