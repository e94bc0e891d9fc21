"""``kd-compare``: launches the cells of a comparison through Hydra, with a progress bar, and writes the report."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import kd
from kd.compare.plan import Cell, check_same, plan, prepare, run_cell, teach, unfinished
from kd.errors import InputError, Stopped
from kd.files import write_text
from kd.process._hydra import callbacks_of
from kd.process.classify import classify
from kd.process.exits import Failure, exit_on_error, write_traceback
from kd.process.job import Job

HELP = """kd-compare tests whether distillation helps: it trains one teacher and, for each seed, a student from scratch
and one per objective, with the same budget and the same batches, and writes a table, verdicts and report.html.

  kd-compare objective=[kd,dkd,dist] seeds=5 student=resnet8 teacher=resnet56 epochs=30

  objective=[...]   names in configs/objective; default kd
  seeds=5           number of seeds, counted from 0, or a list: seeds=[3,4]
  shuffled=true     adds a control: the first objective with the teacher's logits shuffled across samples
  +variants.NAME=[OVERRIDE,...]   adds a student with overrides of kd-train
  study=FOLDER      folder of the runs; by default a folder named after the configuration, so that the same command
                    resumes where it was interrupted and skips finished runs
  hydra/launcher=joblib   runs in parallel, with any Hydra launcher

Everything else is an override of kd-train; see kd-train --help."""
QUIET = ("trainer.enable_progress_bar=false", "hydra/job_logging=file", "hydra/hydra_logging=none")


@dataclass
class CompareOptions:
    """The options of ``kd-compare`` besides overrides of ``kd-train``."""

    objective: Sequence[str] = ("kd",)
    seeds: int | Sequence[int] = 5
    study: str | None = None
    shuffled: bool = False
    variants: Mapping[str, Sequence[str]] | None = None


def parse_options(words: Sequence[str]) -> tuple[CompareOptions, list[str]]:
    """Splits a command line into the options of kd-compare and the overrides of kd-train.

    Raises:
        InputError: an invalid value of an option.
    """
    options, overrides = CompareOptions(), []
    variants: dict[str, Sequence[str]] = {}
    for word in words:
        name, _, text = word.lstrip("+").partition("=")
        if name.startswith("variants."):
            variants[name.removeprefix("variants.")] = _list(word, text)
        elif name == "objective":
            options.objective = _list(word, text)
        elif name == "seeds":
            value = yaml.safe_load(text)
            options.seeds = value if isinstance(value, int) else _list(word, text)
        elif name == "study":
            options.study = text
        elif name == "shuffled":
            if text not in ("true", "false"):
                raise InputError(f"{word}: shuffled must be true or false")
            options.shuffled = text == "true"
        elif name == "seed":
            raise InputError(f"{word}: set seeds instead, for example seeds=5 or seeds=[3,4]")
        else:
            overrides.append(word)
    options.variants = variants
    return options, overrides


def _list(word: str, text: str) -> list[Any]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{word} is not a list, for example objective=[kd,dkd]") from error
    return value if isinstance(value, list) else [value]


def compare(words: Sequence[str], plain: Any) -> Failure | None:
    """Runs the unfinished cells of a comparison and writes the report.

    Args:
        words: the arguments of the command line.
        plain: converts a composed configuration to plain containers.

    Returns:
        The first failure, if any run failed; the others are run nevertheless.

    Raises:
        InputError: invalid arguments.
    """
    from kd.report import write

    options, overrides = parse_options(words)
    cells = plan(options.objective, options.seeds, options.shuffled, options.variants or {})
    with initialize_config_dir(str(kd.CONFIG_DIR), version_base="1.3"):
        configs = {cell.label: plain(compose("train", _composed(cell, overrides))) for cell in cells}
        with _log_to_stdout():
            prepared = prepare(configs, overrides)
        folder = Path(options.study) if options.study else Path("runs/compare") / prepared.name
        for cell in {cell.label: cell for cell in cells if cell not in unfinished(cells, folder)}.values():
            check_same(configs[cell.label], folder / cell.folder, prepared.contents[cell.label])
        if unfinished(cells, folder):
            with _log_to_stdout():
                teach(configs)  # after all checks
        folder.mkdir(parents=True, exist_ok=True)
        planned = {"words": list(words), "cells": [asdict(cell) for cell in cells]}
        write_text(folder / "plan.json", json.dumps(planned, indent=1) + "\n")
        failed = launch(cells, folder, overrides)
    if failed and len(unfinished(cells, folder)) == len(cells):
        return failed[0]
    report = write(folder, folder)
    _write_to_tensorboard(folder, report.markdown())
    report.print()
    return failed[0] if failed else None


def launch(cells: Sequence[Cell], folder: Path, overrides: Sequence[str]) -> list[Failure]:
    """Runs the unfinished cells through Hydra's launcher and returns the failures."""
    remaining = unfinished(cells, folder)
    if done := len(cells) - len(remaining):
        Console(highlight=False).print(f"{done} of {len(cells)} runs are already finished, in {folder}")
    if not remaining:
        return []
    loader = GlobalHydra.instance().hydra
    assert loader is not None
    sweep_dir = f"hydra.sweep.dir={folder}"
    master = loader.compose_config("train", [*QUIET, sweep_dir, *_for_hydra(overrides)], run_mode=RunMode.MULTIRUN)
    context = HydraContext(config_loader=loader.config_loader, callbacks=callbacks_of(master))
    launcher = Plugins.instance().instantiate_launcher(config=master, hydra_context=context, task_function=_job)
    with _progress(cells, folder, len(remaining)):
        words = [cell.words(folder.name, [*QUIET, sweep_dir, *overrides]) for cell in remaining]
        returned: Sequence[JobReturn] = launcher.launch(words, 0)
    values = [(cell, job.return_value) for cell, job in zip(remaining, returned)]
    return [value.of(cell.folder) for cell, value in values if isinstance(value, Failure)]


def _composed(cell: Cell, overrides: Sequence[str]) -> list[str]:
    return [word for word in cell.words("", overrides) if not word.startswith("hydra.sweep")]


def _for_hydra(words: Sequence[str]) -> list[str]:
    """The overrides that configure the launcher; the others apply to each cell."""
    return [word for word in words if word.lstrip("+~").startswith("hydra")]


def _job(config: DictConfig) -> float | Failure | None:
    from kd.process.compose import job_of, plain

    runtime = HydraConfig.get().runtime
    with job_of(config, swept=True) as job, exit_on_error(job):
        try:
            summary = run_cell(plain(config), Path(runtime.output_dir), runtime.choices.get("objective"))
        except Stopped:
            raise
        except Exception as error:
            return _failure(error, job)
    return summary["metrics"]["best"].get("val/acc")


def _failure(error: Exception, job: Job) -> Failure:
    first, code, cause = job.ended(classify(error)[0], error)
    line = classify(cause)[1] or write_traceback(cause, job.folder)
    return Failure(code, line if first else None)


@contextmanager
def _progress(cells: Sequence[Cell], folder: Path, total: int) -> Iterator[None]:
    """A progress bar that counts finished run folders, as cells may run in other processes."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("runs"))
    stop = threading.Event()
    with Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()) as bar:
        task = bar.add_task("compare", total=total)

        def watch() -> None:
            while not stop.wait(0.5):
                bar.update(task, completed=total - len(unfinished(cells, folder)))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()
            bar.update(task, completed=total - len(unfinished(cells, folder)))


@contextmanager
def _log_to_stdout() -> Iterator[None]:
    """Prints kd's log to stdout, because no job has configured logging yet."""
    logger, handler = logging.getLogger("kd"), logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _write_to_tensorboard(folder: Path, text: str) -> None:
    """Adds the report's table to TensorBoard's text tab, as the run ``report``."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "report")) as board:
        board.add_text("report", text)
