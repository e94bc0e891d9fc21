"""Every faster variant of a step equals the plain step, or differs by a measured bound."""

from __future__ import annotations

import copy
import csv
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Complain, Run
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import kd
from kd import Arrays, Batch, Data, Distiller, Frozen, InputError, Memory, Normalized, Taps
from kd.callbacks._lightning import bf16_on_cpu
from kd.callbacks.speed import Speed
from kd.cli import compose
from kd.distill.cached import Cached, CacheOptions, cached
from kd.losses import _fused_kl
from kd.losses.divergences import kl, kl_div
from kd.models.activation_checkpointing import recompute
from kd.models.inference import for_inference
from kd.train import assemble

SHAPE = [3, 16, 16]
SMALL = ("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=400", "data.test=100", "epochs=2")
SMALL += ("teacher=resnet8", "teacher.epochs=2", "teacher.min_accuracy=0", "student=resnet8", "logger=csv")
SMALL += ("trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1")
Numbers = dict[str, Any]


def trained(name: str, **options: Any) -> Normalized:
    """A network whose running statistics are those of some images."""
    torch.manual_seed(0)
    network = kd.models[name](classes=10, **options).train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(16, *SHAPE))
    return Normalized(network, [0.5] * 3, [0.25] * 3).eval()


def plain_kl(student: Tensor, teacher: Tensor, T: float) -> Tensor:
    log_q, log_p = F.log_softmax(student / T, -1), F.log_softmax(teacher / T, -1)
    return T**2 * kl_div(log_q, log_p, log_target=True)


# --- the KL term


@given(st.integers(1, 9), st.integers(1, 40), st.sampled_from([0.5, 1.0, 4.0, 20.0]), st.integers(1, 64))
def test_the_fused_kl_is_the_plain_one_for_every_chunk(rows: int, classes: int, T: float, numbers: int) -> None:
    generator = torch.Generator().manual_seed(rows * 100 + classes)
    student, teacher = (5 * torch.randn(rows, classes, generator=generator).double() for _ in range(2))
    before, _fused_kl.CHUNK_SIZE["cpu"] = _fused_kl.CHUNK_SIZE["cpu"], numbers
    try:
        gradients = []
        for function in (kl, plain_kl):
            leaf = student.clone().requires_grad_()
            value = 3 * function(leaf, teacher, T)
            value.backward()
            gradients.append((value.detach(), leaf.grad))
    finally:
        _fused_kl.CHUNK_SIZE["cpu"] = before
    torch.testing.assert_close(gradients[0][0], gradients[1][0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradients[0][1], gradients[1][1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_of_21841_classes_it_is_exact_to_a_millionth_in_half_the_memory(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (scale * torch.randn(128, 21841, generator=generator) for _ in range(2))
    exact = student.double().requires_grad_()
    plain_kl(exact, teacher.double(), 4.0).backward()
    leaf = student.clone().requires_grad_()
    value = kl(leaf, teacher, 4.0)
    value.backward()
    assert leaf.grad is not None
    assert exact.grad is not None
    expected = float(plain_kl(student.double(), teacher.double(), 4.0))
    assert float(value.detach()) == pytest.approx(expected, rel=1e-6)
    assert float((leaf.grad - exact.grad).norm() / exact.grad.norm()) < 1e-6
    held = {}
    for name, function in (("kl", kl), ("plain", plain_kl)):
        leaf.grad = None
        held[name] = peak_bytes(lambda function=function: function(leaf, teacher, 4.0).backward())
    assert held["kl"] <= held["plain"] / 2, held


def peak_bytes(step: Callable[[], object]) -> int:
    """The most that a step has allocated at once."""
    from torch.profiler import ProfilerActivity, profile

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    assert recorded.profiler is not None
    assert recorded.profiler.kineto_results is not None
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def test_the_fused_kl_has_a_second_derivative_and_leaves_the_teacher_s_to_the_plain_one() -> None:
    student, teacher = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    second = []
    for function in (kl, plain_kl):
        (gradient,) = torch.autograd.grad(function(student, teacher.detach(), 4.0), student, create_graph=True)
        second.append(torch.autograd.grad(gradient.square().sum(), student)[0])
    torch.testing.assert_close(*second)
    kl(student, teacher).backward()
    assert teacher.grad is not None
    assert bool(teacher.grad.abs().sum() > 0)


# --- the teacher


@pytest.mark.parametrize(
    ("name", "folded"),
    [("resnet8", 9), ("wrn_16_2", 7), ("vgg8", 5), ("MobileNetV2", None), ("ShuffleV2", None), ("ResNet18", 20)],
)
def test_folded_teacher_equals_the_plain_one(name: str, folded: int | None) -> None:
    network, images = trained(name), torch.rand(8, *SHAPE)
    before = Frozen(network).fingerprint()
    twin, count = for_inference(network, torch.rand(2, *SHAPE), fold=True, channels_last=True, dtype=None)
    assert count == (folded if folded is not None else count)
    assert count > 0
    with torch.no_grad():
        expected, found = network(images), twin(images)
    assert float((expected - found).abs().max()) < 1e-4 * float(expected.abs().max())
    assert Frozen(network).fingerprint() == before
    assert all(p.is_contiguous() for p in network.parameters())


def test_unfoldable_network_gives_equal_answers() -> None:
    class Odd(nn.Module):
        """A convolution that is used twice, a norm of batch statistics, and a choice that no tracer can follow."""

        def __init__(self, choose: bool) -> None:
            super().__init__()
            self.choose, self.conv = choose, nn.Conv2d(3, 3, 3, padding=1)
            self.norm, self.free = nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False)
            self.norm.running_mean.add_(1)

        def forward(self, x: Tensor) -> Tensor:
            if self.choose and x.mean() > 100:
                return x
            x = self.norm(self.conv(F.relu(self.conv(x))))
            return self.free(self.conv(x)).flatten(1) + F.relu(x).flatten(1)

    for choose in (True, False):
        network, images = Odd(choose).eval(), torch.rand(4, *SHAPE)
        twin, count = for_inference(network, images, fold=True, channels_last=True, dtype=None)
        assert count == 0
        torch.testing.assert_close(twin(images), network(images))


def test_a_network_that_names_its_device_is_not_traced() -> None:
    class Here(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x.to(next(self.parameters()).device))).flatten(1)

    assert for_inference(Here().eval(), torch.rand(2, *SHAPE), fold=True, channels_last=False, dtype=None)[1] == 0


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2"])
def test_stored_lower_precision_weights_equal_those_of_autocast(name: str) -> None:
    network, images = trained(name), torch.rand(8, *SHAPE)
    twin, _ = for_inference(network, images, fold=False, channels_last=False, dtype=torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(twin(images), network(images))


def test_tapped_layer_of_a_folded_network_is_unchanged() -> None:
    network, images = trained("wrn_16_2"), torch.rand(4, *SHAPE)
    layers = ("stem", "stage1.pre", "stage2", "embedding")
    plain = Frozen(copy.deepcopy(network))
    plain.tap(layers)
    quick = Frozen(network)
    quick.use_runner(for_inference(network, images, fold=False, channels_last=True, dtype=None)[0], None)
    quick.tap(layers)
    batch = Batch(images, torch.zeros(4))
    for layer, tensor in plain(batch).items():
        torch.testing.assert_close(quick(batch)[layer], tensor, rtol=1e-4, atol=1e-5)


def test_a_layer_that_overwrites_its_input_can_be_tapped_before_it() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 256, 2))
    images = torch.randn(2, *SHAPE)
    torch.testing.assert_close(Taps(network, ["1:in"])(images)["1:in"], network[0](images))


def test_faster_teacher_moves_and_is_in_no_module_tree() -> None:
    network = trained("resnet8")
    teacher = Frozen(network)
    teacher.use_runner(for_inference(network, torch.rand(2, *SHAPE), True, True, None)[0], None)
    holder = nn.Module()
    holder.teacher = teacher
    assert holder.state_dict() == {}
    holder.double()
    assert {p.dtype for p in teacher.runner.parameters()} == {torch.float64}


# --- whole runs


def losses(folder: Path) -> list[float]:
    with next(folder.rglob("metrics.csv")).open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def test_run_with_every_exact_option_equals_the_plain_run(tmp_path: Path) -> None:
    """Bit for bit where only memory is at stake, to rounding where sums have another order."""
    found = {name: short_run(tmp_path / name, *words) for name, words in RUNS.items()}
    plain, quick = found["plain"], found["default"]
    assert quick["losses"] == pytest.approx(plain["losses"], rel=2e-3)
    assert quick["losses"][0] == pytest.approx(plain["losses"][0], rel=1e-5)
    assert found["recompute"]["losses"] == plain["losses"]
    assert found["recompute"]["saved"] < 0.7 * plain["saved"]
    for key, tensor in plain["state"].items():
        assert torch.equal(found["recompute"]["state"][key], tensor), key
    assert list(quick["state"]) == list(plain["state"])
    assert all(tensor.is_contiguous() for tensor in quick["state"].values())
    assert found["bf16"]["losses"] != plain["losses"]
    assert found["bf16"]["losses"] == pytest.approx(plain["losses"], rel=0.1)


@pytest.mark.parametrize(
    ("words", "part"),
    [(("teacher=ema",), "teacher.network"), (("teacher=resnet8", "objective=mgd"), "objective")],
    ids=["ema", "mgd"],
)
def test_what_trains_beside_the_student_is_channels_last_too(
    words: tuple[str, ...], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = []
    step = Distiller.training_step

    def watched(self: Distiller, *given: Any) -> Any:
        kernels = [p for p in self.get_submodule(part).parameters() if p.ndim == 4 and p.shape[1] > 1 < p.shape[2]]
        orders.append({p.is_contiguous(memory_format=torch.channels_last) for p in kernels})
        return step(self, *given)

    monkeypatch.setattr(Distiller, "training_step", watched)
    base = [word for word in SMALL if not word.startswith("teacher")]
    plain, quick = (short_run(tmp_path / speed, *words, f"speed={speed}", base=base) for speed in ("plain", "cpu"))
    assert quick["losses"] == pytest.approx(plain["losses"], rel=2e-3)
    assert quick["losses"][0] == pytest.approx(plain["losses"][0], rel=1e-5)
    assert (orders[0], orders[-1]) == ({False}, {True})
    assert all(tensor.is_contiguous() for tensor in quick["state"].values())


RUNS = {
    "plain": ("speed=plain",),
    "default": (),
    "recompute": ("speed=plain", "speed.recompute=true"),
    "bf16": ("speed.teacher_precision=bf16", "speed.min_agreement=0"),
}


def short_run(folder: Path, *overrides: str, base: Sequence[str] = (*SMALL, "teacher.cache=off")) -> Numbers:
    """Two epochs of a small student with a random teacher: its losses, its checkpoint, bytes kept for the gradient."""
    saved = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.numel() * tensor.element_size()
        return tensor

    config = compose(*base, *overrides)
    data = assemble.data(config)
    torch.manual_seed(0)
    teacher = assemble.teacher(config, data, weights=False)
    distiller = assemble.distiller(config, data, teacher)
    trainer = assemble.trainer({**config, "callbacks": {}}, folder, [])
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        trainer.fit(distiller, datamodule=data)
    trainer.save_checkpoint(folder / "end.ckpt")
    state = torch.load(folder / "end.ckpt", weights_only=True)["state_dict"]
    return {"losses": losses(folder), "state": state, "saved": saved}


def test_recomputed_blocks_give_the_plain_gradients_and_statistics() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(kd.models["wrn_16_1"](classes=5), nn.Dropout(0.3)).train()
    other = copy.deepcopy(plain)
    assert recompute(other) == 6
    assert list(other.state_dict()) == list(plain.state_dict())
    images = torch.randn(4, *SHAPE)
    for network in (plain, other):
        torch.manual_seed(1)
        network(images).square().sum().backward()
    for one, two in zip(plain.parameters(), other.parameters()):
        assert torch.equal(one.grad, two.grad)
    for (key, one), two in zip(plain.named_buffers(), other.buffers()):
        assert torch.equal(one, two), key
    twin = copy.deepcopy(other).eval()
    torch.testing.assert_close(twin(images), plain.eval()(images))


def test_a_network_without_blocks_cannot_be_recomputed() -> None:
    with pytest.raises(InputError, match="Linear has no sequence of blocks"):
        recompute(nn.Linear(2, 2))


def test_a_teacher_in_lower_precision_is_measured_and_refused_past_a_bound(
    kd_train: Run, complain: Complain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*SMALL, "speed.teacher_precision=bf16")
    done = kd_train(*words, "hydra.run.dir=a")
    assert done.returncode == 0, done.stderr
    assert (
        "\nteacher: 9 batch norms folded, channels last, weights in bf16; logits differ from the plain" in done.stdout
    )
    assert "of their standard deviation), the same class on " in done.stdout
    assert ("speed.teacher_precision: this processor has no instructions for bfloat16" in done.stdout) != bf16_on_cpu()
    (folder,) = (tmp_path / "runs/cache").iterdir()
    assert '"precision": "bf16-mixed"' in (folder / "key.json").read_text()
    monkeypatch.chdir(tmp_path)
    network = trained("resnet8")
    monkeypatch.setattr("kd.callbacks.speed.for_inference", lambda *_: (Scrambled(network.net.fc.out_features), 0))
    line = complain(*words, "hydra.run.dir=b", "teacher.cache=off")
    assert line.startswith("error: speed.teacher_precision: the teacher's logits differ from the plain network's by at")
    assert "less than speed.min_agreement=0.95; set speed.teacher_precision=32" in line
    line = complain(*SMALL, "hydra.run.dir=c", "teacher.cache=off")
    assert line.startswith("error: speed.fold: the teacher's logits differ from the plain network's by at most ")
    assert line.endswith("more than rounding; set speed.fold=false")
    assert not list(tmp_path.glob("[bc]/checkpoints/*.ckpt"))


class Scrambled(nn.Module):
    """A faster teacher that is wrong: the class it names depends on nothing but the position in the batch."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(1, 4)

    def forward(self, images: Tensor) -> Tensor:
        return 9 * F.one_hot(torch.arange(len(images)) % 4, 4).float()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"teacher_precision": "bf17"}, "unknown speed.teacher_precision 'bf17'; did you mean 'bf16'"),
        ({"compile": "students"}, "unknown speed.compile 'students'"),
        ({"min_agreement": 2}, r"speed.min_agreement must lie in \[0, 1\], got 2"),
        ({"compile": True, "recompute": True}, "exclude each other"),
    ],
)
def test_invalid_speed_options_are_refused(wrong: Numbers, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Speed(**wrong)


def test_cached_answers_record_the_precision_of_their_computation() -> None:
    assert Speed().cached_as("32-true") == "32-true"
    assert Speed().cached_as("bf16-mixed") == "bf16-mixed"
    assert Speed(teacher_precision="bf16").cached_as("32-true") == "bf16-mixed"
    assert Speed(teacher_precision="32").cached_as("bf16-mixed") == "32-true"


# --- the step


def made(views: int = 1) -> Data:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (96, *SHAPE), generator=generator).to(torch.uint8)
    arrays = Arrays((images, torch.arange(96) % 10), (images, torch.arange(96) % 10), tuple("abcdefghij"))
    return Data(Memory(arrays, batch_size=16, val="test", pad=2, flip=True, views=views))


def filled(data: Data, folder: Path) -> Cached:
    """A cached teacher that has met every view of an epoch."""
    teacher = cached(Frozen(trained("resnet8")), data, "auto", CacheOptions(root=str(folder)), "resnet8", "32-true")
    assert isinstance(teacher, Cached)
    for batch in data.train_dataloader():
        teacher(data.memory.augment(batch, 0, 0))
    return teacher


def test_answers_arranged_for_an_epoch_equal_the_table(tmp_path: Path) -> None:
    data = made(views=3)
    teacher = filled(data, tmp_path)
    batches = [data.memory.augment(batch, 0, 0) for batch in data.train_dataloader()]
    looked_up = [teacher(batch)[""] for batch in batches]
    index, view = data.plan(0)
    assert torch.equal(torch.cat([batch.index for batch in batches]), index)
    assert torch.equal(torch.cat([batch.view for batch in batches]), view)
    teacher.prefetch(index, view, torch.device("cpu"))
    assert teacher._epoch is not None
    for batch, expected in zip(batches, looked_up):
        assert torch.equal(teacher(batch)[""], expected)
    teacher.prefetch(*data.plan(1), torch.device("cpu"))  # whose views are not all known
    assert teacher._epoch is None


class Waits(TorchDispatchMode):
    """Names the operations for which a GPU would make the host wait."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "lift_fresh", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().partition("::")[2].partition(".")[0]
        masked = name in ("index", "index_put_") and any(
            isinstance(t, Tensor) and t.dtype in (torch.bool, torch.uint8) for t in args[1]
        )
        if name in self.WAITING or masked:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def steps(data: Data, teacher: Any, device: str = "cpu") -> Iterator[Callable[[], None]]:
    """Training steps between logs, optimiser included, each as a function."""
    config = compose("objective=kd", "student=resnet8", "trainer=cpu")
    distiller = assemble.distiller(config, data, teacher).to(device).train()
    distiller.log = distiller.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    optimizer = assemble.optim(config["optim"]).make(list(distiller.parameters()))
    distiller.trainer = Away(data)  # type: ignore[assignment]
    for raw in data.train_dataloader():
        moved = Batch(*(part if part is None else part.to(device) for part in raw))

        def step(moved: Batch = moved) -> None:
            batch = data.memory.augment(moved, 0, 0)
            optimizer.zero_grad()
            distiller.training_step(batch, 0).backward()
            optimizer.step()

        yield step


class Away:
    """A trainer that logs no step."""

    global_step, current_epoch, log_every_n_steps, training, barebones = 0, 0, 10, True, False
    strategy = None

    def __init__(self, data: Data) -> None:
        self.datamodule = data


def test_no_step_between_logs_waits_for_the_device(tmp_path: Path) -> None:
    data = made()
    teacher = filled(data, tmp_path)
    teacher.prefetch(*data.plan(0), torch.device("cpu"))
    first, *rest = steps(data, teacher)
    first()  # compares with fresh answers
    for step in rest:
        with Waits() as seen:
            step()
        assert seen.found == []


def test_the_optimisers_in_one_call_give_what_one_by_one_gives_bit_for_bit() -> None:
    for make, options in ((kd.optim.sgd, {"lr": 0.1}), (kd.optim.adamw, {})):
        found = []
        for foreach in (True, False):
            torch.manual_seed(0)
            network = kd.models["resnet8"](classes=10).to(memory_format=torch.channels_last)
            optimizer = make(network.parameters(), **options)
            optimizer.param_groups[0]["foreach"] = foreach
            for _ in range(5):
                optimizer.zero_grad()
                network(torch.randn(4, *SHAPE)).square().mean().backward()
                optimizer.step()
            found.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
        assert torch.equal(*found)


def test_help_imports_neither_lightning_nor_torchvision(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "kd.cli", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert "student:" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not {"pytorch_lightning", "torchvision", "torchmetrics", "matplotlib", "torch._dynamo"} & imported


@pytest.mark.slow
def test_the_largest_batch_is_found_and_trained_with(kd_train: Run, tmp_path: Path) -> None:
    done = kd_train(*SMALL, "callbacks=batch_size", "callbacks.batch_size.start=16", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert "batch size: 360, the largest that fits; set data.batch_size=360 to skip the search" in done.stdout
    assert "2 epochs, 2 steps in" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["kd", "at"])
def test_a_compiled_run_begins_as_the_eager_one(kd_train: Run, tmp_path: Path, objective: str) -> None:
    words = (*SMALL, f"objective={objective}", "teacher.cache=off")
    for name, more in (("eager", ()), ("compiled", ("speed.compile=true",))):
        done = kd_train(*words, *more, f"hydra.run.dir={name}")
        assert done.returncode == 0, done.stderr
    assert "compiled; logits differ from the plain network's by at most" in done.stdout
    eager, compiled = (losses(tmp_path / name) for name in ("eager", "compiled"))
    assert compiled[0] == pytest.approx(eager[0], rel=1e-5)
    assert compiled[:4] == pytest.approx(eager[:4], rel=1e-2)
    held = torch.load(tmp_path / "compiled/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert not any("_orig_mod" in key for key in held)


# --- on a GPU


@pytest.mark.gpu
def test_a_cached_step_makes_no_gpu_wait(tmp_path: Path) -> None:
    data = made()
    teacher = filled(data, tmp_path).to("cuda")
    teacher.prefetch(*data.plan(0), torch.device("cuda"))
    assert teacher._epoch is not None
    first, second, *rest = steps(data, teacher, "cuda")
    first()
    second()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in rest:
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_live_step_makes_no_gpu_wait() -> None:
    first, second, *rest = steps(made(), Frozen(trained("resnet8")).to("cuda"), "cuda")
    first()
    second()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in rest:
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize(
    "words", [("speed.compile=true",), ("trainer.precision=bf16-mixed", "speed.compile=true")], ids=["float32", "bf16"]
)
def test_cuda_graphs_begin_as_the_eager_run(kd_train: Run, tmp_path: Path, words: tuple[str, ...]) -> None:
    for name, more in (("eager", words[:-1]), ("compiled", words)):
        done = kd_train(*SMALL, "trainer.accelerator=gpu", "teacher.cache=off", *more, f"hydra.run.dir={name}")
        assert done.returncode == 0, done.stderr
    eager, compiled = (losses(tmp_path / name) for name in ("eager", "compiled"))
    assert compiled[0] == pytest.approx(eager[0], rel=2e-2)
    assert compiled == pytest.approx(eager, rel=0.2)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2"])
def test_folded_teacher_equals_the_plain_one_on_a_gpu(name: str) -> None:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        network, images = trained(name).cuda(), torch.rand(8, *SHAPE, device="cuda")
        twin, _ = for_inference(network, images, fold=True, channels_last=True, dtype=None)
        with torch.no_grad():
            torch.testing.assert_close(twin(images), network(images), rtol=1e-3, atol=1e-4)
    finally:
        torch.backends.cudnn.allow_tf32 = before
