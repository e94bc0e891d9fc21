"""What happens when a sweep is done: its runs are compared on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from kd.errors import InputError


class SweepReport(Callback):
    """Hydra's callback that writes and says the report of a sweep's folder."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Writes ``report.html`` into the sweep's folder; a sweep of which nothing can be compared only says so."""
        from kd.report import write

        folder = Path(str(config.hydra.sweep.dir))
        try:
            write(folder, folder).print()
        except InputError as error:
            print(f"no report: {error}")
