"""Private parts of Lightning and torch, each behind a function; as of pytorch-lightning 2.6.6 and torch 2.14.1.

:class:`~kd.callbacks.best.Best` and :class:`~kd.callbacks.ema.EMA` also override private methods of their base classes.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import StochasticWeightAveraging, Timer, WeightAveraging
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase as NormBase
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["NormBase"]  # the base class of all batch and instance norms


def log_train_step(trainer: pl.Trainer) -> None:
    """Logs the metrics of the training step that has just ended, as Lightning does after ``on_train_batch_end``."""
    trainer._logger_connector.update_train_step_metrics()


def validates_next(trainer: pl.Trainer) -> bool:
    """Whether a validation follows the current training batch."""
    loop = trainer.fit_loop
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]


def duration_of(timer: Timer) -> float | None:
    """The number of seconds after which a timer ends the training."""
    return timer._duration


def set_reload_epoch(trainer: pl.Trainer, epoch: int) -> None:
    """Sets the epoch in which the training dataloader was last reloaded."""
    trainer.fit_loop._last_train_dl_reload_epoch = epoch


def set_last_rates(scheduler: LRScheduler, rates: Sequence[Any]) -> None:
    """Sets the learning rates that a schedule reports as its last ones."""
    scheduler._last_lr = list(rates)


def is_resumed(callback: StochasticWeightAveraging) -> bool:
    """Whether SWA was restored from a checkpoint and its schedule is yet to be created."""
    return callback._scheduler_state is not None


def averaged_models(callback: StochasticWeightAveraging) -> int:
    """How many models are in SWA's average."""
    return callback._init_n_averaged if callback.n_averaged is None else int(callback.n_averaged)


def updates_statistics(callback: StochasticWeightAveraging) -> bool:
    """Whether SWA ends with an epoch that measures the statistics of batch norms."""
    return bool(callback._model_contains_batch_norm)


def load_average(callback: StochasticWeightAveraging | WeightAveraging, module: pl.LightningModule) -> None:
    """Copies averaged weights into the module, if there are any."""
    if callback._average_model is None:
        return
    if isinstance(callback, WeightAveraging):
        callback._copy_average_to_current(module)
    else:
        callback.transfer_weights(callback._average_model, module)


def drop_compiled(network: nn.Module) -> None:
    """Undoes ``network.compile()``."""
    network._compiled_call_impl = None


def bf16_on_cpu() -> bool:
    """Whether this processor has instructions for bfloat16; without them its layers are slower than in float32."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def norms_of(tensors: list[Tensor]) -> Any:
    """The norm of each tensor, in one kernel."""
    return torch._foreach_norm(tensors)
