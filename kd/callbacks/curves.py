"""CSV curves of a resumed run, which Lightning's logger would overwrite."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_only


def keep_rows(logger: CSVLogger, step: int) -> None:
    """Keeps the rows of a resumed run's ``metrics.csv`` before ``step`` and drops the others.

    The file is read before the logger deletes it at its first use.
    """
    path = Path(logger.log_dir) / "metrics.csv"
    if rank_zero_only.rank or not path.is_file():  # type: ignore[attr-defined]
        return
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["step"]) < step]
    with warnings.catch_warnings():  # about files that it is about to delete, whose rows were read above
        warnings.filterwarnings("ignore", message=".*exists and is not empty")
        logger.experiment.metrics.extend(rows)
    logger.save()
