"""Distills a variational autoencoder from the posteriors of a larger one: distillation without classes.

The teacher, of 0.17 million parameters, is trained on all training digits, the student, 14 times smaller, on 100.

    python examples/vae/vae.py           # under a minute on two cores
    python examples/vae/vae.py --epochs 1000 --seeds 0 1 2 3 4
"""

from __future__ import annotations

import argparse
import logging
import statistics
import warnings
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd import Batch, Data, Distiller, Frozen, Memory, Normalized, Objective, Optim, Term
from kd.data.sources import digits
from kd.losses import GaussianKL, gaussian_kl
from kd.optim import adamw

LATENT = 8
POSTERIOR = ["mean", "log_variance"]


class VAE(nn.Module):
    """A variational autoencoder; Kingma and Welling 2014 (arXiv:1312.6114).

    Maps images [B, C, H, W] in [0, 1] to the logits [B, C * H * W] of Bernoulli pixels. Layers to tap: ``pixels`` (the
    image as a vector), ``mean`` and ``log_variance`` (the posterior of the code, [B, LATENT] each).
    """

    def __init__(self, pixels: int, hidden: int) -> None:
        super().__init__()
        self.pixels = nn.Flatten()
        self.encoder = nn.Sequential(nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(hidden, LATENT), nn.Linear(hidden, LATENT)
        self.decoder = nn.Sequential(
            *(nn.Linear(LATENT, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, pixels))
        )

    def forward(self, images: Tensor) -> Tensor:
        code = self.encoder(self.pixels(images))
        mean, log_variance = self.mean(code), self.log_variance(code)
        return self.decoder(mean + (log_variance / 2).exp() * torch.randn_like(mean))


class Reconstruction(nn.Module):
    """-log p(x | z) in nats, mean over the batch. ``student`` is [pixels, logits], each [B, C * H * W]."""

    def forward(self, student: list[Tensor]) -> Tensor:
        pixels, logits = student
        return F.binary_cross_entropy_with_logits(logits, pixels, reduction="sum") / len(pixels)


class Prior(nn.Module):
    """KL(q(z | x) || N(0, 1)) in nats, mean over the batch. ``student`` is [mean, log variance], each [B, LATENT]."""

    def forward(self, student: list[Tensor]) -> Tensor:
        standard = [torch.zeros_like(part) for part in student]
        return gaussian_kl(standard, student)  # KL(student || standard)


class VAEDistiller(Distiller):
    """The steps of a task without classes, which log the negative evidence lower bound instead of an accuracy."""

    def check_output(self, side: str, output: Any, classes: int) -> None:
        assert output.ndim == 2, side

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.weighed(Batch(*batch), "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.weighed(Batch(*batch), "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.weighed(Batch(*batch), "test")

    def weighed(self, batch: Batch, part: str) -> Tensor:
        """Logs the parts of the objective for one batch and returns the total."""
        teacher = self.teacher(batch) if self.teacher is not None else None
        total, parts = self.total(self.taps(batch.images), batch, teacher)
        parts["bound"] = parts["reconstruction"] + parts["prior"]
        self.log_dict({f"{part}/{name}": value for name, value in parts.items()}, batch_size=len(batch.images))
        return total

    def on_validation_epoch_end(self) -> None:
        pass  # there is no confusion matrix to log

    on_test_epoch_end = on_validation_epoch_end


def objective(posterior: float) -> Objective:
    """The negative evidence lower bound, plus ``posterior`` times KL(teacher's posterior || student's posterior)."""
    terms = {
        "reconstruction": Term(Reconstruction(), 1.0, ["pixels", ""]),
        "prior": Term(Prior(), 1.0, POSTERIOR),
    }
    if posterior:
        terms["posterior"] = Term(GaussianKL(), posterior, POSTERIOR, POSTERIOR)
    return Objective(terms)


def fit(data: Data, hidden: int, epochs: int, seed: int, teacher: Frozen | None = None) -> VAEDistiller:
    """Trains a student, by the teacher's posteriors too if there is one."""
    pl.seed_everything(seed, verbose=False)
    pixels = torch.Size(data.shape).numel()
    student = Normalized(VAE(pixels, hidden), [0.0] * data.shape[0], [1.0] * data.shape[0])
    optim = Optim(partial(adamw, lr=2e-3, weight_decay=0.0), warmup=0.05)
    terms = objective(1.0 if teacher is not None else 0.0)
    module = VAEDistiller(student, teacher, terms, optim, data.shape, data.classes, config={"seed": seed})
    runner(epochs).fit(module, datamodule=data)
    return module


def bound(module: VAEDistiller, data: Data) -> float:
    """The negative evidence lower bound on the test images in nats, with one sample of the code for each image."""
    pl.seed_everything(0, verbose=False)
    return runner(1).test(module, datamodule=data, verbose=False)[0]["test/bound"]


def runner(epochs: int) -> pl.Trainer:
    """A trainer without checkpoints, logger and terminal output."""
    silent: dict[str, Any] = {f"enable_{what}": False for what in ("progress_bar", "model_summary", "checkpointing")}
    return pl.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, limit_val_batches=0, **silent)


def main(arguments: list[str] | None = None) -> dict[str, list[float]]:
    """Trains a teacher, and for each seed a student without and one with its posteriors; prints the bounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--per-class", type=int, default=10)
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    everything = Data(Memory(digits(), batch_size=64))
    few = Data(Memory(digits(), batch_size=10 * options.per_class, per_class=options.per_class))
    teacher = fit(everything, 256, max(options.epochs // 5, 1), seed=0)
    bounds: dict[str, list[float]] = {"teacher": [bound(teacher, few)], "student alone": [], "student with kd": []}
    frozen = Frozen(teacher.student)
    for seed in options.seeds:
        bounds["student alone"].append(bound(fit(few, 48, options.epochs, seed), few))
        bounds["student with kd"].append(bound(fit(few, 48, options.epochs, seed, frozen), few))
    for name, values in bounds.items():
        deviation = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        print(f"{name:15} negative bound on test {statistics.mean(values):6.2f}{deviation} nats")
    return bounds


if __name__ == "__main__":
    main()
