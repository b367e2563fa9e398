"""A command line written for llama-server, given to `ggufd cluster`: it means what it means to `ggufd serve`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from ggufd import cluster_cli
from ggufd.cli import main
from ggufd.cluster.serving.cluster import Cluster, ClusterState
from ggufd.cluster.serving.dashboard import Dashboard
from ggufd.cluster.serving.launch import Launch, tables_of
from ggufd.cluster.serving.serve_config import ClusterOptions
from tests.support.llama_server_flags import settings_of

STATE = ClusterState(
    options=ClusterOptions(n_replicas=2, tables={"context": {"threads": 3}}, folder="/f"),
    status="RUNNING",
    message="",
    n_wanted=0,
    replicas=(),
    ingresses=(),
)
LINE = ["-m", "a b.gguf", "-c", "8192", "-np", "2", "-fa", "on", "-ctk", "q8_0", "-ctv", "q8_0", "-nkvo", "--no-mmap"]
LINE += ["--temp", "0.7", "--dry_sequence_breaker", "none", "-l", "15043-1", "--chat-template-kwargs", '{"a": 1}']


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[ClusterOptions]:
    """What is deployed on a Ray that the test has in place of a real one; no settings but the test's."""
    found: list[ClusterOptions] = []

    def deploy(_: Cluster, options: ClusterOptions, on_progress: Any) -> ClusterState:
        found.append(options)
        return STATE

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(Dashboard, "is_there", lambda _: True)
    monkeypatch.setattr(Cluster, "state", lambda _: STATE)
    monkeypatch.setattr(Cluster, "deploy", deploy)
    monkeypatch.setattr(cluster_cli, "loads", dict)
    return found


def run(*arguments: str) -> object:
    with pytest.raises(SystemExit) as ended:
        main(["cluster", *arguments])
    return ended.value.code


def test_replicas_get_what_serve_would_have(deployed: list[ClusterOptions], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("serve", "--replicas", "3", *LINE, "--port", "81") == 0
    (options,) = deployed
    wanted = tables_of(settings_of(LINE))
    assert wanted["context"]["parallel"] == 2
    assert options.tables == {**wanted, "server": {"allowed_hosts": ["localhost"]}}
    assert (options.n_replicas, options.port) == (3, 81)
    assert run("config", *LINE) == 0
    (engines, _) = yaml.safe_load(capsys.readouterr().out.partition("\nproxy_location")[2].partition("\n")[2])[
        "applications"
    ]
    assert engines["args"]["tables"] == options.tables


def test_a_roll_takes_such_flags_and_no_variables(
    deployed: list[ClusterOptions], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "64")
    monkeypatch.setenv("LLAMA_ARG_HF_REPO", "other/repo")
    monkeypatch.setenv("LLAMA_ARG_FOO", "1")
    assert run("roll", "-fa", "on", "-m", "b.gguf", "--jinja") == 0
    (options,) = deployed
    assert options.tables == {
        "model": {"model": "b.gguf"},
        "context": {"threads": 3, "flash_attn": "on"},
        "server": {"allowed_hosts": ["localhost"]},
    }
    assert capsys.readouterr().err.splitlines()[0] == "ggufd: --jinja changes nothing: chat templates are always Jinja"


@pytest.mark.parametrize("command", ["serve", "roll"])
def test_what_changes_nothing_is_said_in_the_same_words(
    command: str, deployed: list[ClusterOptions], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, "--jinja", "--threads-http", "4", "--top-k", "1", "--top-k", "2") == 0
    said = capsys.readouterr().err
    for note in (
        "--jinja changes nothing: chat templates are always Jinja",
        "--threads-http changes nothing: one thread serves all connections, without waiting for any",
        "--top-k was given several times: the last one counts, as in llama-server",
    ):
        assert f"ggufd: {note}\n" in said


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (["serve", "--tools", "all"], 1, "--tools: this server runs no tools"),
        (["roll", "--tools", "all"], 1, "--tools: this server runs no tools"),
        (["config", "--tools", "all"], 1, "--tools: this server runs no tools"),
        (["serve", "-np"], 1, "-np: a value is missing"),
        (["serve", "-ctk", "q9"], 1, '--cache-type-k = "q9": expected'),
        (["serve", "--no-such-flag"], 2, "--no-such-flag: there is no such option"),
        (["serve", "--hf-token", "secret"], 1, "set HF_TOKEN on each machine"),
        (["roll", "--hf-token", "secret"], 1, "set HF_TOKEN on each machine"),
    ],
)
def test_what_is_refused_is_refused_here_too(
    arguments: Sequence[str],
    code: int,
    what: str,
    deployed: list[ClusterOptions],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(*arguments) == code
    out, err = capsys.readouterr()
    assert (out, deployed) == ("", [])
    assert what in err
    assert "secret" not in err
    assert "Traceback" not in err


def test_options_of_the_cluster_are_known_beside_them(
    deployed: list[ClusterOptions], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("serve", "--replica", "2") == 2
    assert "did you mean --replicas?" in capsys.readouterr().err
    assert run("scale", "--jinja", "2") == 2
    assert "No such option: --jinja" in capsys.readouterr().err


def test_help_and_version_are_shown_and_nothing_is_deployed(
    deployed: list[ClusterOptions], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("serve", "--jinja", "--usage") == 0
    out, err = capsys.readouterr()
    assert "Usage: ggufd cluster serve [OPTIONS]" in out
    assert (err, deployed) == ("", [])
    assert run("serve", "--version") == 0
    assert capsys.readouterr().out.startswith("ggufd ")


def test_offline_holds_for_every_replica_and_stays(deployed: list[ClusterOptions]) -> None:
    """A Ray that runs already, and other machines, do not have the variable that it makes."""
    assert run("serve", "--offline") == 0
    assert run("serve") == 0
    assert [one.variables for one in deployed] == [{"HF_HUB_OFFLINE": "1"}] * 2
    assert deployed[0].rolled({}, "").variables == {"HF_HUB_OFFLINE": "1"}
    assert Launch({}, "token", variables={"HF_HUB_OFFLINE": "1"}).environment()["HF_HUB_OFFLINE"] == "1"


def test_a_token_of_the_environment_is_not_deployed(
    deployed: list[ClusterOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert run("serve") == 0
    assert "secret" not in repr(deployed)
