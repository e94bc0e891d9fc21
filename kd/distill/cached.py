"""The cached teacher: the network runs once for each view of each training image, then its logits are looked up."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.data.datamodule import image_data
from kd.distill.answer_table import DTYPES, AnswerTable
from kd.distill.identity import structure_key
from kd.distill.teacher import Frozen, FrozenTeacher
from kd.errors import InputError, unknown
from kd.models.normalized import Normalized, unwrap

log = logging.getLogger(__name__)

# largest difference between stored and fresh logits, relative to the largest logit: rounding only
TOLERANCE = {"float64": 1e-5, "float32": 1e-3, "float16": 5e-3, "bfloat16": 2e-2}
CHECKED = 8  # rows
TF32 = 2e-2  # tolerance if convolutions use TF32, as they may not have when the row was written


@dataclass(frozen=True)
class CacheOptions:
    """Where and how teachers' logits are stored.

    Args:
        root: the folder of the tables.
        dtype: ``float32`` (exact), ``float16`` or ``bfloat16``.
        topk: number of classes to store per row; the remaining mass is spread evenly over the others. 0 stores all.
        max_gb: no table larger than this is created.

    Raises:
        InputError: ``dtype`` is unknown, or a number is out of range.
    """

    root: str = "runs/cache"
    dtype: str = "float32"
    topk: int = 0
    max_gb: float = 8.0

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise unknown("cache.dtype", self.dtype, DTYPES)
        if self.topk < 0:
            raise InputError(f"cache.topk must be at least 0, got {self.topk}")
        if not self.max_gb > 0:
            raise InputError(f"cache.max_gb must be above 0, got {self.max_gb:g}")

    def of(self, precision: str) -> CacheOptions:
        """These options for a teacher in ``precision``; if that is 64-bit, the exact ``dtype`` is ``float64``."""
        exact = precision.startswith("64") and self.dtype == "float32"
        return replace(self, dtype="float64") if exact else self


class Cached(FrozenTeacher):
    """A frozen teacher that looks up the logits of views it has already processed.

    A batch without ``index`` and ``view`` (evaluation) runs through the network, and so does every batch once layers
    are tapped, because only logits are stored. If only some samples of a batch are cache hits, the others alone run.
    In each epoch the first hits are compared with fresh logits: the whole first batch if all of it are hits, or as
    many hits of partly cached batches as make ``CHECKED`` in total. This costs about one teacher batch per epoch.

    Args:
        frozen: the teacher.
        table: its logits.
        tolerance: largest difference between stored and fresh logits, relative to the largest logit (or 1, if that is
            larger).

    Raises:
        InputError: the stored logits are not this teacher's.
    """

    def __init__(self, frozen: Frozen, table: AnswerTable, tolerance: float = 1e-3) -> None:
        super().__init__(frozen.networks())
        self.__dict__["frozen"] = frozen
        self.table, self.tolerance = table, tolerance
        self.hits = self.requests = 0
        self._unchecked = CHECKED
        self._epoch: Tensor | None = None

    frozen: Frozen

    @property
    def network(self) -> nn.Module:
        """The network that computes the logits missing from the table."""
        return self.frozen.network

    def frozen_members(self) -> dict[str, Frozen]:
        return {"": self.frozen}

    def cached_members(self) -> dict[str, Cached]:
        return {"": self}

    def tap(self, layers: Iterable[str]) -> None:
        """Sets the layers to tap; if there are any, every batch runs through the network."""
        self.frozen.tap(layers)

    def owned_modules(self) -> list[nn.Module]:
        return self.frozen.owned_modules()

    @property
    def bypassed(self) -> bool:
        """Whether the table is unused because layers are tapped."""
        return bool(self.frozen.taps.layers)

    def prefetch(self, index: Tensor, view: Tensor, device: torch.device) -> None:
        """Copies the logits of an epoch's samples [N] to the device, so that no step waits for the host.

        Does nothing unless all are cache hits, no sample occurs twice, and they fit in half of the free GPU memory.
        """
        self._epoch = None
        rows = index * self.table.views + view
        if self.bypassed or len(index.unique()) < len(index) or not bool(self.table.met[rows].all()):
            return
        count = int(index.max()) + 1
        if device.type == "cuda" and 4 * count * self.table.classes > torch.cuda.mem_get_info(device)[0] / 2:
            return
        logits = self._read(rows, index.device)
        answers = logits.new_zeros(count, self.table.classes)
        answers[index] = logits
        self._epoch = answers.to(device)

    @torch.no_grad()
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """``{"": logits [B, C], layer: tensor, ...}`` for a batch, without gradient."""
        if self.bypassed or batch.index is None or batch.view is None:
            return self.frozen(batch)
        if self._epoch is not None:
            self.requests, self.hits = self.requests + len(batch.index), self.hits + len(batch.index)
            logits = self._epoch.index_select(0, batch.index)
            self._check(batch, logits)
            return {"": logits}
        rows = (batch.index * self.table.views + batch.view).cpu()
        met = self.table.met[rows]
        hits = int(met.sum())
        self.requests, self.hits = self.requests + len(rows), self.hits + hits
        if hits == len(rows):
            logits = self._read(rows, batch.images.device)
            self._check(batch, logits)
            return {"": logits}
        return {"": self._filled(batch, rows, met, hits)}

    def _filled(self, batch: Batch, rows: Tensor, met: Tensor, hits: int) -> Tensor:
        if hits and self._unchecked:
            old = met.nonzero().flatten()[: self._unchecked]
            at = old.to(batch.images.device)
            self._check(Batch(batch.images[at], batch.labels[at]), self._read(rows[old], at.device))
        missing = (~met).nonzero().flatten()
        some = missing.to(batch.images.device)
        images, labels = (batch.images, batch.labels) if not hits else (batch.images[some], batch.labels[some])
        fresh = self.frozen(Batch(images, labels))[""]
        self.table.write(rows[missing], fresh.cpu())
        return self._read(rows, fresh.device)  # read back, so that the logits are rounded as in later epochs

    def _read(self, rows: Tensor, device: torch.device) -> Tensor:
        """The logits [B, C] in filled rows [B], in float64 if the network is."""
        logits = self.table.read(rows)
        network = next(self.network.parameters(), logits)
        return logits.to(device, torch.promote_types(logits.dtype, network.dtype))

    def _check(self, batch: Batch, logits: Tensor) -> None:
        """Compares stored with fresh logits, as a wrong table would otherwise go unnoticed."""
        if not self._unchecked:
            return
        fresh = self.frozen(batch)[""].to(logits.dtype)
        if self.table.topk:  # only the stored classes can be compared
            top = logits.topk(self.table.topk, -1).indices
            fresh, logits = fresh.log_softmax(-1).gather(1, top), logits.gather(1, top)
        apart = float((fresh - logits).abs().max() / fresh.abs().max().clamp(min=1.0))
        coarse = fresh.is_cuda and torch.backends.cudnn.allow_tf32
        if not apart <= (max(self.tolerance, TF32) if coarse else self.tolerance):
            raise InputError(
                f"the cache {self.table.folder} does not contain this teacher's logits: they differ by {apart:.2g} of "
                "the largest logit; delete it, or set teacher.cache=off"
            )
        self._unchecked = max(self._unchecked - len(logits), 0)

    def on_epoch_end(self) -> None:
        """Called at the end of an epoch: flushes the table; the next epoch checks it again."""
        self.table.flush()
        self._unchecked, self._epoch = CHECKED, None

    def flush(self) -> None:
        """Flushes the table, so that a run resumed from a checkpoint has the same cache hits."""
        self.table.flush()

    def log_metrics(self) -> dict[str, float]:
        """``cache_hits``: the share of samples that were cache hits since the last call."""
        share = self.hits / max(self.requests, 1)
        requests, self.requests, self.hits = self.requests, 0, 0
        return {} if not requests else {"cache_hits": share}


def cached(
    frozen: Frozen,
    data: Any,
    where: str,
    store: CacheOptions,
    name: str,
    precision: str,
    network: Mapping[str, Any] | None = None,
) -> Frozen | Cached:
    """The teacher with a table of its logits, or unchanged if they cannot be cached; logs the choice.

    Args:
        frozen: the teacher, with its weights.
        data: must have ``views``, ``augmentation()``, ``train_sha256()`` and ``counts()`` to be cached.
        where: ``off``, ``auto`` for a separate folder under ``store.root``, or the folder to use.
        store: storage options.
        name: the teacher's name, used in the name of the folder.
        precision: the precision that it computes in, in Lightning's notation.
        network: the result of :func:`kd.distill.identity.answers_key`; None derives it from the network's modules.

    Raises:
        InputError: a folder set explicitly cannot be used, or a table is damaged.
    """
    if where == "off":
        return frozen
    store = store.of(precision)
    size = _size(data, store, where)
    if size is None:
        return frozen
    key, samples = key_of(frozen, data, precision, network), data.counts()["train"]
    folder = Path(store.root) / f"{name}-{digest(key, store)}" if where == "auto" else Path(where)
    try:
        table = AnswerTable(folder, key, samples, data.views, data.classes, store.dtype, store.topk)
    except InputError as error:
        if where == "auto" and _no_space(folder, size):
            log.info("cache: off, %s", error)
            return frozen
        raise
    log.info("cache: %s, %s views, %.2f GB, %.1f %% filled", folder, f"{table.rows:,}", size, table.filled())
    return Cached(frozen, table, TOLERANCE[store.dtype] if precision.startswith(("32", "64")) else 0.1)


def _size(data: Any, store: CacheOptions, where: str) -> float | None:
    """The size in GB of the table for this data; None, with a log line, if the logits cannot be cached."""
    count = image_data(data).views
    reason, size = "the views of this data cannot be enumerated (data.views=K draws K views per image)", 0.0
    if count:
        size = AnswerTable.bytes(data.counts()["train"], count, data.classes, _checked(store.dtype), store.topk) / 1e9
        reason = f"it would take {size:.2f} GB, more than cache.max_gb={store.max_gb:g}"
    if count and size <= store.max_gb:
        return size
    if where != "auto":
        raise InputError(f"teacher.cache={where}: {reason}")
    log.info("cache: off, %s", reason)
    return None


def key_of(frozen: Frozen, data: Any, precision: str, network: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Everything that a teacher's logits for a view depend on; the arguments are those of :func:`cached`."""
    module = frozen.network
    pixels: Mapping[str, Any] = {}
    if isinstance(module, Normalized):
        pixels = {"mean": module.mean.flatten().tolist(), "std": module.std.flatten().tolist(), "size": module.size}
    return {
        "teacher": {**(network or structure_key(unwrap(module))), "sha256": frozen.fingerprint()},
        "pixels": pixels,
        "columns": None if frozen.columns is None else frozen.columns.tolist(),
        "data": data.train_sha256(),
        "augmentation": data.augmentation(),
        "precision": precision,
    }


def digest(key: Mapping[str, Any], store: CacheOptions) -> str:
    """16 hex digits that identify a key together with its ``dtype`` and ``topk``."""
    text = json.dumps([key, store.dtype, store.topk], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _checked(dtype: str) -> str:
    if dtype not in DTYPES:
        raise unknown("cache.dtype", dtype, DTYPES)
    return dtype


def _no_space(folder: Path, size: float) -> bool:
    existing = next((path for path in folder.absolute().parents if path.is_dir()), Path("/"))
    return shutil.disk_usage(existing).free < size * 1e9
