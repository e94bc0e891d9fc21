"""Private parts of Lightning that concern processes, each behind a function; as of pytorch-lightning 2.6.6."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence

Observer = Callable[[Sequence[subprocess.Popen[bytes]]], None]


def replace_process_observer(observer: Observer) -> Observer:
    """Sets what watches the processes that Lightning's launcher starts; returns the previous observer."""
    from pytorch_lightning.strategies.launchers import subprocess_script  # importing Lightning takes seconds

    previous: Observer = subprocess_script._launch_process_observer  # type: ignore[assignment]
    subprocess_script._launch_process_observer = observer  # type: ignore[assignment]
    return previous
