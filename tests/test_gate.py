"""The accuracy gate for teachers, ensembles, and pairs of networks from different libraries."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Complain, Run
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import kd
from kd import Batch, Distiller, Ensemble, Frozen, InputError, Normalized, Objective, Term
from kd.losses import CE, KL, FitNets

SMALL = ("data=synthetic", "data.shape=[1,8,8]", "data.classes=4", "data.train=400", "data.test=100", "student=cnn")
FREELY_SIZED = ("torchvision", "timm", "import", "cnn", "mlp", "vit_tiny", "deit_tiny")
QUIET = ("trainer.enable_progress_bar=false", "hydra.run.dir=run")


def answers(*logits: list[float]) -> dict[str, Frozen]:
    """Teachers that always give the same logits."""

    class Same(nn.Module):
        def __init__(self, values: list[float]) -> None:
            super().__init__()
            self.values = nn.Parameter(torch.tensor(values))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.values.expand(len(images), -1)

    return {f"t{i}": Frozen(Same(values)) for i, values in enumerate(logits)}


BATCH = Batch(torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.long))
LOGITS = st.lists(st.floats(-5, 5), min_size=3, max_size=3)


@given(LOGITS, LOGITS, st.floats(0.5, 8), st.floats(0.1, 0.9))
def test_an_ensemble_of_probabilities_is_their_mean_at_its_temperature(
    a: list[float], b: list[float], T: float, w: float
) -> None:
    given = Ensemble(answers(a, b), weights=[w, 1 - w], T=T)(BATCH)[""]
    soft = [torch.tensor(z).div(T).softmax(-1) for z in (a, b)]
    torch.testing.assert_close((given[0] / T).softmax(-1), w * soft[0] + (1 - w) * soft[1], rtol=1e-4, atol=1e-6)


@given(LOGITS, LOGITS)
def test_an_ensemble_of_logits_is_their_mean(a: list[float], b: list[float]) -> None:
    given = Ensemble(answers(a, b), average="logits")(BATCH)[""]
    torch.testing.assert_close(given[0], (torch.tensor(a) + torch.tensor(b)) / 2)


def test_more_confident_member_has_more_weight() -> None:
    sure, unsure = [9.0, 0.0, 0.0], [0.0, 0.1, 0.0]
    plain, trusting = (Ensemble(answers(sure, unsure), T=1.0, confidence=c)(BATCH)[""][0] for c in (False, True))
    assert trusting.softmax(-1)[0] > plain.softmax(-1)[0] + 0.05
    h = [-(p * p.log()).sum() for p in (torch.tensor(z).softmax(-1) for z in (sure, unsure))]
    share = torch.stack([-h[0], -h[1]]).softmax(0)
    expected = share[0] * torch.tensor(sure).softmax(-1) + share[1] * torch.tensor(unsure).softmax(-1)
    torch.testing.assert_close(trusting.softmax(-1), expected)


def test_ensemble_refuses_members_that_cannot_be_averaged() -> None:
    one, two = answers([0.0, 1.0]), answers([0.0, 1.0], [1.0, 0.0])
    for members, options, said in (
        (one, {}, "at least two members"),
        (two, {"average": "probs"}, "did you mean 'probabilities'"),
        (two, {"weights": [1.0]}, "a positive number for each of the 2 members"),
        (two, {"weights": [1.0, -1.0]}, "a positive number for each"),
    ):
        with pytest.raises(InputError, match=said):
            Ensemble(members, **options)
    with pytest.raises(InputError, match="write member/layer"):
        Ensemble(two).tap(["layer1"])


def test_members_have_their_own_normalisation_and_tappable_layers() -> None:
    a, b = kd.models["cnn"](classes=4, channels=1), kd.models["cnn"](classes=4, channels=1)
    members = {"a": Frozen(Normalized(a, [0.0], [1.0])), "b": Frozen(Normalized(b, [0.5], [0.1], size=16))}
    ensemble = Ensemble(members)
    ensemble.tap(["b/layer1"])
    images = torch.rand(2, 1, 8, 8)
    assert ensemble(Batch(images, BATCH.labels))["b/layer1"].shape == (2, 16, 16, 16)
    assert list(ensemble.parameters()) == []
    assert ensemble.state_dict() == {}


def test_ensemble_trains_a_student_and_its_accuracy_is_reported(kd_train: Run, tmp_path: Path) -> None:
    done = kd_train(*SMALL, *QUIET, "teacher=[cnn,mlp,cnn]", "teacher.members.cnn_2.seed=1", "epochs=8")
    assert done.returncode == 0, done.stderr
    teacher = json.loads((tmp_path / "run/summary.json").read_text())["teacher"]
    assert teacher["name"] == "cnn+mlp+cnn_2"
    assert list(teacher["members"]) == ["cnn", "mlp", "cnn_2"]
    assert len({member["sha256"] for member in teacher["members"].values()}) == 3
    for who, about in (("teacher", teacher), *((f"teacher {n}", m) for n, m in teacher["members"].items())):
        assert f"\n{who}: validation accuracy {100 * about['accuracy']:.2f} % (40 images)" in done.stdout
    assert "teacher: ensemble, mean of probabilities at T=4, weights cnn 0.333" in done.stdout


def test_an_untrained_teacher_is_refused_before_step_one(
    complain: Complain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kd.models.weights import save

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save(kd.models["cnn"](classes=4, channels=1), tmp_path / "random.safetensors")
    given = (*SMALL, *QUIET, "teacher=cnn", "teacher.checkpoint=random.safetensors", "epochs=1")
    line = complain(*given)
    assert re.search(r"the teacher has a validation accuracy of [\d.]+%, near chance \(chance is", line)
    assert "set teacher.checkpoint" in line
    assert "less than teacher.min_accuracy=0.9" in complain(*given, "teacher.min_accuracy=0.9")
    assert "teacher.min_accuracy must lie in [0, 1], got 7" in complain(*given, "teacher.min_accuracy=7")
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not list(tmp_path.rglob("summary.json"))


def test_a_teacher_that_gives_nan_is_refused(
    complain: Complain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kd.models.weights import save

    network = kd.models["cnn"](classes=4, channels=1)
    network.fc.weight.data.mul_(1e38)  # finite weights, infinite logits
    network.layer2[1].weight.data.mul_(1e10)
    save(network, tmp_path / "huge.safetensors")
    monkeypatch.chdir(tmp_path)
    line = complain(*SMALL, *QUIET, "teacher=cnn", "teacher.checkpoint=huge.safetensors", "teacher.min_accuracy=0")
    assert "gives non-finite logits for 40 of 40 validation images" in line


def test_the_teacher_s_accuracy_and_sha256_are_recorded(kd_train: Run, tmp_path: Path) -> None:
    done = kd_train(*SMALL, *QUIET, "teacher=resnet8", "epochs=4")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["teacher"]["accuracy"] == pytest.approx(summary["metrics"]["best"]["teacher/acc"])
    held = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert held["kd"]["teacher_sha256"] == summary["teacher"]["sha256"]


class Own(nn.Module):
    """A student of one's own, which knows nothing of kd."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 24, 3, 2), nn.ReLU())
        self.head = nn.Linear(24, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


def pair(name: str) -> tuple[nn.Module, nn.Module, dict[str, Term]]:
    hub = kd.models
    terms = {"ce": Term(CE(), 0.1), "kd": Term(KL(T=4.0), 0.9)}
    if name == "torchvision":
        return hub["torchvision"]("resnet18", 5), hub["torchvision"]("mobilenet_v3_small", 5), terms
    if name == "vit":
        return hub["timm"]("vit_tiny_patch16_224", 5), hub["resnet8x4"](classes=5), terms
    feature = Term(FitNets(), 0.1, student="body.2", teacher="layer3")
    return hub["timm"]("resnet18", 5), Own(5), {**terms, "fitnets": feature}


@pytest.mark.parametrize("name", ["torchvision", "vit", "own"])
def test_pairs_across_libraries_learn(name: str) -> None:
    torch.manual_seed(0)
    teacher, student, terms = pair(name)
    front: Any = ([0.5] * 3, [0.25] * 3)
    frozen = Frozen(kd.models.prepare(teacher, *front))
    distiller = Distiller(Normalized(student, *front), frozen, Objective(terms), shape=(3, 64, 64), classes=5)
    optimiser = torch.optim.AdamW([p for p in distiller.parameters() if p.requires_grad], lr=1e-3)
    batch = Batch(torch.rand(6, 3, 64, 64), torch.tensor([0, 1, 2, 3, 4, 0]))
    losses = []
    for _ in range(4):
        total, _ = distiller.objective(distiller.taps(batch.images), batch.labels, frozen(batch))
        losses.append(float(total))
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    assert losses[-1] < losses[0]


def test_images_are_resized_to_the_size_of_a_transformer() -> None:
    network = kd.models.prepare(kd.models["timm"]("vit_tiny_patch16_224", 5), [0.5] * 3, [0.25] * 3)
    assert network.size == 224
    small = kd.models["timm"]("vit_tiny_patch16_224", 5, options={"img_size": 32, "patch_size": 4})
    assert kd.models.prepare(small, [0.5] * 3, [0.25] * 3)(torch.rand(2, 3, 32, 32)).shape == (2, 5)


def test_map_losses_refuse_token_features() -> None:
    teacher = kd.models["timm"]("vit_tiny_patch16_224", 5, options={"img_size": 32, "patch_size": 8, "depth": 2})
    student = Normalized(kd.models["resnet8"](classes=5), [0.5] * 3, [0.25] * 3)
    frozen = Frozen(Normalized(teacher, [0.5] * 3, [0.25] * 3))
    terms = {"fitnets": Term(FitNets(), student="layer2", teacher="blocks.1")}
    with pytest.raises(InputError, match=r"objective\.fitnets: .*\[2, 17, 192\]"):
        Distiller(student, frozen, Objective(terms), shape=(3, 32, 32), classes=5)


def test_the_cifar_stem_keeps_the_size() -> None:
    for channels in (1, 3):
        network = kd.models["torchvision"]("resnet18", 5, channels, stem="cifar")
        tapped = kd.Taps(network.eval(), ["layer1"])(torch.rand(1, channels, 32, 32))
        assert tapped["layer1"].shape == (1, 64, 32, 32)
    with pytest.raises(InputError, match="did you mean 'cifar'"):
        kd.models["torchvision"]("resnet18", 5, stem="cifr")
    with pytest.raises(InputError, match="stem=cifar does not fit VisionTransformer"):
        kd.models["timm"]("vit_tiny_patch16_224", 5, stem="cifar")


def test_pretrained_weights_bring_their_normalisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    reference = torchvision.models.resnet18(num_classes=1000)
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    torch.save(reference.state_dict(), tmp_path / "hub/checkpoints" / weights.url.rpartition("/")[2])
    network = kd.models.prepare(
        kd.models["torchvision"]("resnet18", 1000, weights="IMAGENET1K_V1"), [0.1] * 3, [0.2] * 3
    )
    assert network.size == 224
    torch.testing.assert_close(network.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    images = torch.rand(1, 3, 224, 224)
    preset = weights.transforms()
    expected = reference.eval()(
        (images - torch.tensor(preset.mean).view(3, 1, 1)) / torch.tensor(preset.std).view(3, 1, 1)
    )
    torch.testing.assert_close(network.eval()(images), expected, rtol=1e-4, atol=1e-5)
    ten = kd.models["torchvision"]("resnet18", 10, channels=1, weights="DEFAULT")
    assert ten.untrained_head
    filters = reference.conv1.weight.sum(1, keepdim=True)
    torch.testing.assert_close(ten.conv1.weight, filters)
    with pytest.raises(InputError, match="did you mean 'IMAGENET1K_V1'"):
        kd.models["torchvision"]("resnet18", 10, weights="IMAGENET1K_V3")


def test_networks_are_listed_with_their_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    from kd.models.__main__ import main

    main(["resnet8*", "timm:vit_tiny_patch16_224"])
    said = capsys.readouterr().out
    for words in ("resnet8x4 1,233,540 177.1 million", "vit_tiny_patch16_224 5,543,716"):
        assert words in " ".join(said.split())
    with pytest.raises(InputError, match="did you mean"):
        main(["resnt*"])


@pytest.mark.parametrize("name", [n for n in kd.models if n not in FREELY_SIZED])
def test_the_documented_sizes_are_right(name: str) -> None:
    from kd.models.cost import size_of

    with torch.device("meta"):
        size = size_of(kd.models[name](classes=100), [3, 32, 32])
    documented = (kd.models[name].__doc__ or "").splitlines()[0]
    assert documented == f"{size['parameters'] / 1e6:.2f} million parameters, {size['macs'] / 1e6:.1f} million MACs."
