"""`ggufd cluster simulate`: what it prints, what it refuses, and that it needs no Ray."""

from __future__ import annotations

import importlib.util
import io

import pytest
from rich.console import Console

from ggufd.cli import main
from ggufd.cluster.simulation import command
from ggufd.cluster.simulation.command import RunBar

SMALL = ("--replicas", "20", "--minutes", "1", "--warm-minutes", "0.5")


def simulated(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["cluster", "simulate", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_it_prints_the_policies_beside_each_other_and_needs_no_ray(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else find(name))
    assert simulated(*SMALL, "--seed", "5", "--lost-share", "0.2") == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "20 servers of 16 slots and 100 kept chats, 2,000 chats at a time"
    assert "seed 5; 1 min after 0.5" in lines[1]
    head = next(number for number, line in enumerate(lines) if line.startswith("policy "))
    names = [line[:21].strip() for line in lines[head + 1 : head + 6]]
    assert names == ["one machine", "ggufd", "power of two", "consistent hashing", "prefix tree"]
    assert "20% of the servers killed at once" in out
    assert sum(line.endswith(("held", "missed")) for line in lines) == 4
    assert [line.partition(":")[0] for line in err.splitlines()][:2] == ["one machine", "ggufd"]


def test_the_same_seed_gives_the_same_figures(capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for seed in ("1", "1", "2"):
        simulated(*SMALL, "--policies", "ggufd", "--lost-share", "0", "--seed", seed)
        said.append(capsys.readouterr().out.partition("policy ")[2])
    assert said[0] == said[1] != said[2]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--policies", "round-robin"], "there is no policy 'round-robin'; known are ggufd, "),
        (["--policies", ","], "no policy is named"),
        (["--chats", "100", "--utilisation", "0.9"], "100 chats cannot use 288 slots at a time"),
        (["--lost-share", "0.01"], "0.01 of 20 servers is not one"),
        (["--replicas", "0"], "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_simulated_is_told_in_words(
    given: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulated(*SMALL, *given) == 2
    out, err = capsys.readouterr()
    assert says in " ".join(err.replace("│", " ").split())
    assert out == ""


def test_an_interrupt_ends_it_without_a_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object, runner: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command.Simulation, "report", interrupted)
    assert simulated(*SMALL) == 130
    assert capsys.readouterr().err == "ggufd: interrupted\n"


def test_on_a_terminal_a_bar_shows_the_run_and_is_gone_at_the_end() -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=100)
    with RunBar(2, screen) as bar:
        bar.run("the first", lambda tell: tell(0.5))
        screen.print("a row")
        bar.run("the second", lambda tell: tell(0.5))
    assert isinstance(screen.file, io.StringIO)
    shown = screen.file.getvalue()
    assert "the second" in shown
    assert "a row" in shown
    assert "100%" in shown
