"""CTKD's golden schedule, as the gradient that its temperature gets in each epoch of a run."""

from __future__ import annotations

import json

import numpy as np
import pytorch_lightning as pl
import torch
from paths import GOLDEN
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kd import Distiller, Frozen, Objective, Optim, Term
from kd.losses.ctkd import CTKD, ctkd, ctkd_temperature


class Exact(nn.Flatten):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).double()


class Seen(pl.Callback):
    """The temperature's gradient at each step."""

    def __init__(self, theta: nn.Parameter) -> None:
        self.theta, self.gradients = theta, list[Tensor]()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self.theta.grad is not None
        self.gradients.append(self.theta.grad.clone())


def test_the_golden_schedule_passes_through_the_lightning_module() -> None:
    about = json.loads((GOLDEN / "index.json").read_text())["cases"]
    case = next(known for known in about if known["method"] == "ctkd_lambda_schedule")
    stored = np.load(GOLDEN / case["file"], allow_pickle=False)
    wanted = dict(zip(stored["in_epoch"].tolist(), torch.from_numpy(stored["out_lambda"])))
    given = case["hyperparameters"]
    loss = CTKD(loops=given["num_loops"], lambda_max=given["max_value"], lambda_min=given["min_value"])

    torch.manual_seed(0)
    images, labels = torch.rand(8, 1, 2, 2), torch.arange(8) % 3
    student, teacher = (nn.Sequential(Exact(), nn.Linear(4, 3).double()) for _ in range(2))
    still = Optim(lambda parameters: torch.optim.SGD(parameters, lr=0.0), schedule="constant", warmup=0)
    module = Distiller(student, Frozen(teacher), Objective({"ctkd": Term(loss)}), still, [1, 2, 2], 3)
    seen = Seen(loss.theta)
    trainer = pl.Trainer(
        max_epochs=max(wanted),
        accelerator="cpu",
        precision="64-true",
        callbacks=[seen],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(images, labels), batch_size=8))

    theta = loss.theta.detach().clone().requires_grad_()
    value = ctkd(student(images.double()), teacher(images.double()), ctkd_temperature(theta, 1.0, 20.0).squeeze())
    (plain,) = torch.autograd.grad(value, theta)
    found = torch.cat(seen.gradients)
    expected = torch.stack([wanted[epoch] for epoch in range(1, max(wanted) + 1)]) * plain
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0.0)
    assert plain != 0
