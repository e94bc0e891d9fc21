"""A composed configuration as plain containers, and the job that Hydra runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from kd.errors import InputError
from kd.process.job import Job

SAVED = ".hydra/config.yaml"


def plain(config: DictConfig) -> dict[str, Any]:
    """The composed configuration as resolved plain containers.

    Raises:
        InputError: a value is still missing; its key is named.
    """
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise InputError(f"{missing[0]} must be given")
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


@contextmanager
def composing(folder: Path) -> Iterator[None]:
    """Lets Hydra compose from a folder of configurations, also while it runs a job or composes from another folder."""
    hydra = GlobalHydra.instance()
    running, hydra.hydra = hydra.hydra, None
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = running


def job_of(config: DictConfig, swept: bool) -> Job:
    """The job that Hydra is about to run; the configuration of one of a sweep is saved for its other processes."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    if swept and not (folder / SAVED).is_file():
        (folder / SAVED).parent.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, folder / SAVED)
    return Job(folder, swept)
