"""Suggested commands work when pasted into a shell, for any name of the run folder."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from command_runs import launched
from fork import kd_train_in
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from paths import PYTHONPATH

from kd.cli.root import Root
from kd.process.command import command, override, path_argument

NAMES = (
    *(
        "my run",
        "a=b",
        "a,b",
        "é",
        "日本",
        "[x]",
        "{a}",
        "{a:1}",
        "(x)",
        "<x>",
        "a:b",
        "a#b",
        "a%b",
        "x@y",
        "a|b",
        "a&b",
    ),
    *("1e3", "01", "1_0", ".5", "0x10", "true", "NULL", "null", "None", "inf", "nan", "on", "1:30", "2026-01-31"),
    *("$HOME", "$(ls)", "`ls`", "${T}", "\\${T}", "\\\\${T}", "${oc.env:HOME}", "${", "$${a}", "a}b"),
    *("it's", 'say "x"', "'", '"', "a'b\"c", "\\", "a\\", "a\\\\", 'a\\"b', "\\'", "a\\ b", "a\\\n"),
    *("-x", "--help", "~", "~x", "~/x", "+x", "@x", "!x", "*", "?", "^", ";", "a;b", " lead", "trail ", "a\tb", "a\nb"),
    *("..", "./x", "../x", "/tmp/x y", "runs/train/2026-01-31/10-00-00-000000", "runs/a-b_c.d+e"),
)


def words_of(line: str) -> list[str]:
    """The words of a command line, as a POSIX shell passes them on."""
    given = subprocess.run(["sh", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout
    return given.decode().split("\0")[:-1]


@pytest.mark.parametrize("name", NAMES)
def test_quoted_folder_name_round_trips_through_shell_and_hydra(name: str) -> None:
    line = command("kd-train", resume=name)
    program, word = words_of(line)
    assert [program, word] == shlex.split(line)
    (parsed,) = OverridesParser.create().parse_overrides([word])
    config = OmegaConf.structured(Root)
    config.T = 4.0
    OmegaConf.update(config, parsed.key_or_group, parsed.value())
    assert config.resume == name


@pytest.mark.parametrize("name", NAMES)
def test_quoted_path_round_trips_through_the_shell(name: str) -> None:
    (word,) = words_of(path_argument(name))
    assert Path(word) == Path(name)
    assert not word.startswith("-")


def test_plain_path_is_not_quoted() -> None:
    assert command("kd-train", resume="runs/train/2026-01-31/10-00-00") == (
        "kd-train resume=runs/train/2026-01-31/10-00-00"
    )


@pytest.mark.parametrize("name", ["a=b, [x] é", "it's $HOME", "1e3", "null", "~ {a}"])
def test_the_command_that_a_stopped_run_suggests_resumes_it(tmp_path: Path, name: str) -> None:
    strike = (
        "+callbacks.saboteur={_target_: saboteur.Saboteur, moment: step, epoch: 1, batch: 2, signum: 15, mark: mark}"
    )
    stopped = launched(tmp_path, strike, override("hydra.run.dir", name))
    assert stopped.returncode == 143, stopped.stderr
    watch = re.search(r"tensorboard --logdir (.+)", stopped.stdout)
    assert watch is not None
    assert words_of(watch[1]) == [name]
    _, line = stopped.stderr.split("resume with: ")
    _, *words = words_of(line)
    on = kd_train_in(tmp_path, [*words, "trust=true"], {"PYTHONPATH": PYTHONPATH})
    assert on.returncode == 0, on.stderr
    assert (tmp_path / name / "summary.json").is_file()
    again = launched(tmp_path, override("hydra.run.dir", name))
    held = re.search(r"resume it with (.+), or set another", again.stderr)
    assert held is not None
    finished = kd_train_in(tmp_path, [*words_of(held[1]), "trust=true"], {"PYTHONPATH": PYTHONPATH})
    assert "already finished" in finished.stdout


@pytest.mark.parametrize("name", ["1e3", "true", "007"])
def test_numeric_folder_name_may_be_typed_unquoted(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    on = kd_train_in(tmp_path, [f"resume={name}"], {})
    assert f"resume={name}: no training has started there" in on.stderr
