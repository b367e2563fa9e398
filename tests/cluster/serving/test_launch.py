"""Settings on their way to the server of a replica."""

from __future__ import annotations

from pathlib import Path

from ggufd.cluster.replicas import ReplicaLoad
from ggufd.cluster.serving.launch import tables_of, toml_of
from ggufd.cluster.serving.replica import load_of
from ggufd.settings import sources


def test_what_a_newer_server_tells_is_left_out() -> None:
    assert load_of({"running": 2, "model": "m", "color": "red"}) == ReplicaLoad(running=2)


def test_only_settings_that_differ_travel_and_all_of_them_arrive(tmp_path: Path) -> None:
    environ = {"GGUFD_CTX_SIZE": "512", "GGUFD_LORA": "a.gguf,b.gguf", "GGUFD_PORT": "99", "GGUFD_TEMPERATURE": "0.5"}
    tables = tables_of(sources.load(None, {"model": "m.gguf", "drain_s": "3"}, environ))
    assert tables == {
        "model": {"model": "m.gguf", "lora": ["a.gguf", "b.gguf"]},
        "context": {"ctx_size": 512},
        "server": {"drain_s": 3.0},
        "sampling": {"temperature": 0.5},
    }
    path = tmp_path / "config.toml"
    path.write_text(toml_of(tables))
    read = sources.load(path, {}, {})
    assert tables_of(read) == tables


def test_settings_of_single_models_travel_too(tmp_path: Path) -> None:
    given = tmp_path / "given.toml"
    given.write_text('[models.small]\nmodel = "s.gguf"\nctx_size = 64\n\n[models."a b"]\nmodel = "t.gguf"\n')
    tables = tables_of(sources.load(given, {}, {}))
    path = tmp_path / "config.toml"
    path.write_text(toml_of(tables))
    assert sources.load(path, {}, {}).models == sources.load(given, {}, {}).models
