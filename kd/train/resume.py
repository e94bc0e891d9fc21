"""``kd-train resume=RUN``: checks the options beside it against the run's configuration, and resumes the run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

import kd
from kd.distill.ensemble import Ensemble
from kd.distill.identity import INERT, RESUMABLE, matches
from kd.errors import InputError, located, unknown
from kd.registry import check_registered, current, nested, target_of, with_current
from kd.run_folder.checkpoints import LAST, resumable
from kd.run_folder.layout import CONFIG, SUMMARY
from kd.run_folder.summary import is_tested, read_config, read_summary, require
from kd.train.checks import check
from kd.train.console import print_results
from kd.train.pipeline import train
from kd.train.shaping import checked
from kd.train.summary import limits_of

log = logging.getLogger(__name__)

DATA = ("same", "changed")  # choices of resume_data


def config_of(run: str, trust: bool = False) -> dict[str, Any]:
    """The configuration of a run folder.

    A run folder is data, so its classes and functions must be registered with kd unless ``trust`` is true.

    Raises:
        InputError: no run in the folder, no configuration, or one that names code not registered with kd.
    """
    folder = Path(run)
    if "://" in run or not folder.is_dir():
        raise InputError(f"resume={run} is not a run folder: {'a URL' if '://' in run else 'there is no such folder'}")
    if not (folder / CONFIG).exists():
        raise InputError(f"resume={run}: no training has started there ({CONFIG} is missing); start a new run")
    with located(f"resume={run}"):
        config = read_config(folder)
    keys = yaml.safe_load((Path(kd.CONFIG_DIR) / "train.yaml").read_text()).keys() - {"defaults"}
    if missing := sorted(keys - config.keys()):
        raise InputError(f"resume={run}: {folder / CONFIG} is damaged: it has no key {missing[0]}")
    if not trust:
        for key, node in config.items():
            check_registered(node, key, trusted=targets())
    return config


def resumed(run: str, typed: Mapping[str, Any], trust: bool = False, data: str = "same") -> dict[str, Any]:
    """Resumes a run, or reports that it is finished, and returns its summary.

    Args:
        run: the run folder.
        typed: the options given with ``resume=``, dotted key to value; see :func:`changed`.
        trust: whether to import classes that the run folder names and that are not registered with kd.
        data: ``same``, or ``changed`` to accept data that differs from the checkpoint's.

    Raises:
        InputError: as :func:`config_of` and :func:`changed`.
    """
    if data not in DATA:
        raise InputError(f"resume_data={data}: {unknown('choice', data, DATA)}")
    folder, config = Path(run), changed(config_of(run, trust), typed, run)
    metadata = config.pop("about", None) or {}
    trained = (folder / SUMMARY).is_file()
    if trained:
        summary = read_summary(folder)
        require(summary, folder, "metrics.best", "training.epochs", "training.steps")
        if summary["training"].get("limits") != limits_of(config):
            check(config)
        if is_over(summary, config):
            log.info("resume: %s is already finished; %s", run, _longer(summary, config))
            print_results(summary, folder)
            return summary
    if not resumable(folder):
        if trained:
            raise InputError(f"resume={run} has been trained, but its checkpoints/{LAST} is missing: start a new run")
        log.info("resume: %s has no checkpoint yet, so its training starts from the beginning", run)
    return train(config, folder, resume=True, data_changed=data == "changed", objective=metadata.get("objective"))


def is_over(summary: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether a run with this summary is complete under this configuration: trained to its limits, and tested."""
    training, limits = summary["training"], limits_of(config)
    reached = limits["max_epochs"] <= training["epochs"] or 0 < limits.get("max_steps", -1) <= training["steps"]
    return is_tested(summary) and (reached or training.get("limits") == limits)


def _longer(summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Which option extends a finished run, as text."""
    most = limits_of(config).get("max_steps", -1)
    if not 0 < most <= summary["training"]["steps"]:
        return "epochs=N trains for longer"
    return f"trainer.max_steps={most} is reached; a higher value, or -1 for no limit, trains for longer"


@cache
def targets() -> frozenset[str]:
    """The targets named by kd's configuration files, and the ensemble."""
    names = {target_of(Ensemble)}
    for path in Path(kd.CONFIG_DIR).rglob("*.yaml"):
        names |= set(_targets(yaml.safe_load(path.read_text())))
    return frozenset(names)


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for inner in node.values():
            yield from _targets(inner)


def changed(config: dict[str, Any], typed: Mapping[str, Any], run: str) -> dict[str, Any]:
    """A run's configuration with the options given with ``resume=``.

    Args:
        config: the run's configuration.
        typed: the options, dotted key to value.
        run: the run folder as typed, for messages.

    Raises:
        InputError: options that make it a different experiment, with the keys that differ.
    """
    before, differing = config, []
    for key, value in typed.items():
        value = current(value) if key.endswith("._target_") and isinstance(value, str) else with_current(value)
        for name, new in nested.flatten(value, key).items():
            old = nested.get(config, name)
            if new == old:
                continue
            if matches(name, (*INERT, *RESUMABLE)):
                config = nested.replaced(config, name, new)
            else:
                differing.append(f"{name} ({old} in the run, {new} given)")
    if differing:
        raise InputError(
            f"resume={run} is a different experiment: {', '.join(differing)}; omit that, or start a new run"
        )
    config = {**config, "callbacks": checked(before["callbacks"], config["callbacks"], run)}
    if typed.get("epochs") is not None and "trainer.max_epochs" not in typed:
        config = nested.replaced(config, "trainer.max_epochs", typed["epochs"])
    return config
