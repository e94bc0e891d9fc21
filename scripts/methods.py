"""Generates docs/methods.md from the objectives' configurations, their losses and the measured costs.

    python scripts/methods.py          # write the page
    python scripts/methods.py --check  # exit 1 if the page is out of date

Each ``configs/objective/*.yaml`` starts with comments: ``# NAME: title; authors year, arXiv:...``, its formula, its
published figures, and a line ``# Choose it ...``.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import kd  # noqa: E402
from kd import Arrays, Data, Distiller, Memory, Objective  # noqa: E402
from kd.cli import compose  # noqa: E402
from kd.train import assemble  # noqa: E402

HEAD = """# Methods

Every objective of `kd-train objective=NAME`. `scripts/methods.py` generates this page from the configurations in
`configs/objective`, the losses' signatures and the costs measured by `benchmarks/objectives.py`.

*Needs*: logits or layers of the teacher, labels, sample indices. *Trains*: number of parameters that the method trains
in addition to resnet8x4's. *Cost*: median time of a whole training step relative to `kd`, on {measured}.
*Published*: accuracies for resnet32x4 → resnet8x4 on CIFAR-100 (scratch 72.50, teacher 79.42), as reported by the
source; "last epoch" and "best epoch" are different scales, the second about 0.3 higher by construction.

No golden case from an authors' code covers `byot`, `mgd`, `sdd`, `tfkd`, `ttm`, `wttm`, `crd_batch`, `tv` and
`alpha_beta`; their formulas and properties are tested instead.

| objective | method | needs | trains | weights | published | cost | when to choose it |
|---|---|---|---|---|---|---|---|
"""


def comments(name: str) -> list[str]:
    """The opening comment lines of an objective's configuration."""
    lines = (kd.CONFIG_DIR / "objective" / f"{name}.yaml").read_text().splitlines()
    return [line.removeprefix("#").strip() for line in lines if line.startswith("#")]


def built(name: str) -> Objective:
    """The objective, built for resnet32x4 and resnet8x4."""
    import torch

    config = compose(f"objective={name}", "teacher=resnet32x4", "student=resnet8x4")
    images, labels = torch.zeros(200, 3, 32, 32, dtype=torch.uint8), torch.arange(200) % 100
    data = Data(Memory(Arrays((images, labels), (images, labels), tuple(map(str, range(100)))), val="test"))
    student = assemble.network(config["student"], "student", data)
    teacher = assemble.teacher(config, data)
    objective = assemble.objective(config["objective"])
    objective.attach_data(len(labels), labels)
    return Distiller(student, teacher, objective, None, data.shape, data.classes).objective


def needs(objective: Objective) -> str:
    """The inputs of the terms: layers or logits of the teacher, labels, sample indices."""
    inputs: list[str] = []
    for _, term in objective.named_terms():
        if "teacher" in term.needs:
            inputs += ["layers" if term.layers("teacher") else "logits"]
        if {"student", "labels"} < set(term.needs) or set(term.needs) == {"student", "labels"}:
            inputs += ["labels"]
        if "index" in term.needs:
            inputs += ["index"]
    return ", ".join(dict.fromkeys(inputs)) or "nothing"


def published(lines: list[str]) -> str:
    """The figure for resnet32x4 -> resnet8x4, and how it was reported."""
    for line in lines:
        match = re.search(r"resnet32x4 -> resnet8x4: ([\d.]+(?: \+- [\d.]+)?)(?: \(([^)]*)\))?", line)
        if match:
            value, how = match.groups()
            how = how or next(iter(re.findall(r"\(((?:last|best) epoch[^)]*)\)", line[match.end() :])), None)
            return f"{value.replace('+-', '±')}" + (f" ({how})" if how else "")
    return "-"


def source(objective: Objective) -> str:
    """The source file of the method's loss, which is the last term's."""
    path = inspect.getsourcefile(type(objective.named_terms()[-1][1].loss))
    assert path is not None
    return f"../{Path(path).resolve().relative_to(ROOT).as_posix()}"


def row(name: str, costs: dict[str, dict[str, float]]) -> str:
    """One line of the table."""
    lines = comments(name)
    objective = built(name)
    weights = " + ".join(f"{term.weight:g} {key}" for key, term in objective.named_terms())
    trained = sum(p.numel() for p in objective.parameters())
    cost = f"{costs[name]['median']:.2f}" if name in costs else "-"
    choose = next((line.removeprefix("Choose it ").rstrip(".") for line in lines if line.startswith("Choose it ")), "-")
    title = lines[0].replace("|", "\\|")
    trains = f"{trained:,}" if trained else "no"
    cells = (
        f"[`{name}`]({source(objective)})",
        title,
        needs(objective),
        trains,
        weights,
        published(lines),
        cost,
        choose,
    )
    return "| " + " | ".join(cells) + " |"


def page() -> str:
    """The whole page."""
    measured = json.loads((ROOT / "docs" / "costs.json").read_text())
    names = sorted(path.stem for path in (kd.CONFIG_DIR / "objective").glob("*.yaml"))
    return HEAD.format(measured=measured["measured"]) + "\n".join(row(n, measured["costs"]) for n in names) + "\n"


if __name__ == "__main__":
    target = ROOT / "docs" / "methods.md"
    if "--check" in sys.argv[1:]:
        if target.read_text() != page():
            sys.exit("docs/methods.md is out of date; run scripts/methods.py")
    else:
        target.write_text(page())
