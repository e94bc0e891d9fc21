"""The report at the end of a sweep: its runs compared on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from kd.errors import InputError


class SweepReport(Callback):
    """Hydra callback that writes and prints the report of a sweep."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Writes ``report.html`` into the sweep's folder, or prints why there is nothing to compare."""
        from kd.report import write

        folder = Path(str(config.hydra.sweep.dir))
        try:
            write(folder, folder).print()
        except InputError as error:
            print(f"no report: {error}")


Reported = SweepReport  # its name in earlier versions, for hydra.callbacks of users
