"""A table on disk of what a teacher answered: one row for each view of each training image, filled as views are met."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd.errors import InputError, unknown

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
FORMAT = 1
KEY = "key.json"


class AnswerTable:
    """Rows of logits, or of the ``topk`` largest log-probabilities with the mass of the rest, in mapped files.

    Several processes may fill one table: they write the same rows, and a row is marked as met only after it has been
    written, so that a killed run leaves a table whose marks are true.

    Args:
        folder: of the files; made whole or not at all where it is absent.
        key: what the rows depend on, plain containers; another key than the folder's is refused.
        samples: training images.
        views: views of each.
        classes: logits in a row.
        dtype: ``float32`` (exact, or ``float64`` for a network in that), ``float16`` or ``bfloat16``.
        topk: how many classes are kept; 0 for all of them.

    Raises:
        InputError: the folder holds the table of another teacher, data or augmentation (what differs is named), is
            damaged, or there is no space for it.
    """

    FLUSH = 10.0  # seconds between writes to the disk

    def __init__(
        self,
        folder: Path,
        key: Mapping[str, Any],
        samples: int,
        views: int,
        classes: int,
        dtype: str = "float32",
        topk: int = 0,
    ) -> None:
        if dtype not in DTYPES:
            raise unknown("cache.dtype", dtype, DTYPES)
        if not 0 <= topk < classes:
            raise InputError(f"cache.topk must lie between 0 and {classes - 1}, got {topk}")
        self.folder, self.classes, self.topk, self.views = folder, classes, topk, views
        self.key = {"format": FORMAT, **key, "samples": samples, "views": views, "classes": classes}
        self.key |= {"dtype": dtype, "topk": topk}
        rows, width = samples * views, topk or classes
        self.layout: dict[str, tuple[torch.dtype, int]] = {"values": (DTYPES[dtype], width)}
        if topk:
            self.layout |= {"indices": (torch.int32, topk), "rest": (torch.float32, 1)}
        self.layout |= {"met": (torch.uint8, 1)}
        self.rows = rows
        if not (folder / KEY).is_file():
            self._make()
        self._check()
        self._files = {name: self._mapped(name, *self.layout[name]) for name in self.layout}
        self.parts = {name: torch.from_numpy(file).view(self.layout[name][0]) for name, file in self._files.items()}
        self.met = self.parts["met"].flatten().bool()
        self._unmarked: list[Tensor] = []
        self._flushed = time.monotonic()

    @staticmethod
    def bytes(samples: int, views: int, classes: int, dtype: str, topk: int) -> int:
        """What a table takes on the disk."""
        width = topk or classes
        row = width * DTYPES[dtype].itemsize + (4 * topk + 4 if topk else 0) + 1
        return samples * views * row

    def filled(self) -> float:
        """The share of rows that it holds, in percent."""
        return 100 * float(self.met.float().mean())

    def read(self, rows: Tensor) -> Tensor:
        """The logits [B, C] in met rows [B], in float32 at least; of the ``topk`` kind, log-probabilities at T = 1."""
        values = self.parts["values"][rows]
        values = values if values.dtype == torch.float64 else values.float()
        if not self.topk:
            return values
        remainder = self.parts["rest"][rows].clamp(min=1e-12) / (self.classes - self.topk)
        return (
            remainder.log().to(values).expand(-1, self.classes).scatter(1, self.parts["indices"][rows].long(), values)
        )

    def write(self, rows: Tensor, logits: Tensor) -> None:
        """Keeps the logits [B, C] of rows [B]; they are marked on disk when the next flush is due."""
        if self.topk:
            least = logits if logits.dtype == torch.float64 else logits.float()
            values, indices = least.log_softmax(-1).topk(self.topk, -1)
            self.parts["indices"][rows] = indices.int()
            self.parts["rest"][rows] = (1 - values.exp().sum(-1, keepdim=True)).float()
        else:
            values = logits
        self.parts["values"][rows] = values.to(self.parts["values"].dtype)
        self.met[rows] = True
        self._unmarked.append(rows)
        if time.monotonic() - self._flushed > self.FLUSH:
            self.flush()

    def flush(self) -> None:
        """Brings rows to the disk, then their marks, and takes up what other processes have met."""
        if self._unmarked:
            for name in self.layout:  # the marks are the last
                if name == "met":
                    self.parts["met"][torch.cat(self._unmarked)] = 1
                self._files[name].flush()
            self._unmarked.clear()
        self.met |= self.parts["met"].flatten().bool()
        self._flushed = time.monotonic()

    def _make(self) -> None:
        temporary = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.tmp")
        try:
            temporary.mkdir(parents=True)
            for name, (dtype, width) in self.layout.items():
                with (temporary / f"{name}.bin").open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, self.rows * width * dtype.itemsize)
            (temporary / KEY).write_text(json.dumps(self.key, indent=2) + "\n")
            temporary.rename(self.folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if not (self.folder / KEY).is_file():  # else another process was faster
                size = sum(self.rows * width * dtype.itemsize for dtype, width in self.layout.values())
                why = error.strerror or error
                raise InputError(f"the cache {self.folder} of {size / 1e9:.2f} GB cannot be made: {why}") from error

    def _check(self) -> None:
        try:
            stored = json.loads((self.folder / KEY).read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{self.folder / KEY} is damaged; delete {self.folder}, it will be rebuilt") from error
        mine = json.loads(json.dumps(self.key))
        differing = [name for name in sorted({*stored, *mine}) if stored.get(name) != mine.get(name)]
        if differing:
            first = differing[0]
            difference = f"{first} is {_short(mine.get(first))} here, {_short(stored.get(first))} there"
            raise InputError(f"the cache {self.folder} is of another {' and '.join(differing)}: {difference}")
        for name, (dtype, width) in self.layout.items():
            path, size = self.folder / f"{name}.bin", self.rows * width * dtype.itemsize
            if not path.is_file() or path.stat().st_size != size:
                raise InputError(f"{path} is cut off or absent; delete {self.folder}, it will be rebuilt")

    def _mapped(self, name: str, dtype: torch.dtype, width: int) -> np.memmap:
        plain = np.dtype(f"i{dtype.itemsize}")  # numpy has no bfloat16
        return np.memmap(self.folder / f"{name}.bin", plain, "r+", shape=(self.rows, width))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
