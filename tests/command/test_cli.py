"""The command line: what is said and which code is returned, without loading a model."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import trustme
import typer
from cryptography.hazmat.primitives import serialization

from ggufd import __version__, cli
from ggufd.api.services.settings import StreamLimits
from ggufd.batches.files import StorageLimits
from ggufd.errors import StartupError
from ggufd.llama.model.system import DeviceMemory
from ggufd.llama.params import ContextParams
from ggufd.models import hub
from ggufd.processes.prestarted import PrestartedProcess
from ggufd.settings import api_settings, engine_settings, flags, listen, sources
from ggufd.settings.config import settings
from ggufd.settings.flags import with_settings
from tests.support.models import gguf_files


@pytest.fixture(autouse=True)
def _no_settings_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("platformdirs.user_config_path", lambda name: tmp_path / "user" / name)
    monkeypatch.setenv("COLUMNS", "200")


class Run:
    """What a command left behind."""

    def __init__(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        self.code = caught.value.code or 0
        self.out, self.err = capsys.readouterr()


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


class TestErrors:
    """One line that begins with the program's name, nothing else, exit code 1."""

    @pytest.mark.parametrize("command", [[], ["serve"], ["check"]])
    def test_a_missing_model(self, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        run = Run([*command, "--model", "nowhere.gguf"], capsys)
        assert (run.code, run.out) == (1, "")
        assert run.err == "ggufd: nowhere.gguf: no such file; --model wants the path of a GGUF file\n"

    def test_a_file_that_is_no_gguf(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "m.gguf").write_bytes(b"PK" * 100)
        assert "m.gguf: not a GGUF file" in Run(["-m", "m.gguf"], capsys).err

    def test_an_empty_folder(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "no .gguf file in this folder" in Run(["-m", str(tmp_path)], capsys).err

    def test_a_port_in_use(self, taken_port: int, capsys: pytest.CaptureFixture[str]) -> None:
        run = Run(["--port", str(taken_port)], capsys)
        assert run.code == 1
        assert run.err == (
            f"ggufd: port {taken_port} of 127.0.0.1 is in use by another program; stop it, or choose another port "
            f"with --port\n"
        )

    def test_a_wrong_setting_in_the_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "config.toml").write_text("[server]\nprot = 1\n")
        run = Run(["check"], capsys)
        assert (run.code, run.err) == (
            1,
            "ggufd: config.toml, line 2: [server] prot is not a setting; did you mean port?\n",
        )

    def test_a_wrong_variable(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setenv("GGUFD_PORT", "http")
        assert Run(["check"], capsys).err == 'ggufd: GGUFD_PORT = "http": expected a whole number\n'

    def test_an_unknown_flag_names_its_neighbour(self, capsys: pytest.CaptureFixture[str]) -> None:
        run = Run(["--prot", "1"], capsys)
        assert run.code == 2
        assert "--port" in run.err

    def test_listening_to_others_without_a_key(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "--allow-unauthenticated" in Run(["check", "--host", "0.0.0.0"], capsys).err

    def test_a_chat_template_that_is_missing(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "t.jinja: cannot be read" in Run(["check", "--chat-template-file", "t.jinja"], capsys).err


class TestSeveralModels:
    def test_check_names_them_and_plans_the_first(
        self, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name in ("a", "b"):
            shutil.copy(tiny_model, tmp_path / f"{name}.gguf")
        run = Run(["check", "--models-dir", str(tmp_path)], capsys)
        assert run.code == 0, run.err
        assert "a.gguf" in run.out
        assert "Known models: a, b" in run.out


class TestCommands:
    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        run = Run(["--version"], capsys)
        assert (run.code, run.out) == (0, f"ggufd {__version__}\n")

    def test_help_names_the_commands_and_cuts_none_of_their_lines(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        run = Run(["--help"], capsys)
        assert run.code == 0
        assert all(
            name in run.out for name in ("serve", "check", "plan", "fetch", "keys", "cluster", "replay", "bench")
        )
        assert "..." not in run.out.partition("Commands:")[2]

    @pytest.mark.parametrize(("flag", "is_on"), [("-kvo", True), ("-nkvo", False), ("--no-kv-offload", False)])
    def test_a_switch_has_llama_servers_short_names(self, flag: str, is_on: bool) -> None:
        taken: list[dict[str, object]] = []
        app = typer.Typer(add_completion=False)
        app.command()(with_settings(lambda config, flags: taken.append(flags), ["context"]))
        app([flag], standalone_mode=False)
        assert [flags["kv_offload"] for flags in taken] == [is_on]

    def test_help_of_80_columns_shows_every_flag_whole_under_its_heading(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        lines = Run(["serve", "--help"], capsys).out.splitlines()
        assert max(map(len, lines)) <= 80
        words = {word.rstrip(",") for line in lines for word in line.split()}
        assert {flag for one in settings() for flag in one.flags} <= words
        assert [line for line in lines if line.endswith(":") and not line.startswith(" ")] == [
            "Options:",
            "Model:",
            "Context:",
            "Several models:",
            "Server:",
            "Stored responses:",
            "Resumable streams:",
            "Batches:",
            "Images:",
            "Queue:",
            "Reasoning:",
            "Output defaults:",
            "Sampling defaults:",
        ]

    @pytest.mark.parametrize("command", ["serve", "check"])
    def test_the_options_that_are_known_are_those_that_there_are(self, command: str) -> None:
        """Those of llama-server's are translated before; what is neither is refused with a near name."""
        params = typer.main.get_command(cli.build_app(command)).commands[command].params  # type: ignore[attr-defined]
        assert flags.options().keys() - {"--help", "-h"} == {
            name for one in params for name in (*one.opts, *one.secondary_opts)
        }

    def test_devices_are_listed_under_the_names_that_device_takes(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        gpu = DeviceMemory("CUDA0", "A GPU", 1 << 30, 2 << 30, shares_ram=False)
        monkeypatch.setattr("ggufd.llama.model.system.device_memory", lambda: (gpu,))
        run = Run(["--list-devices"], capsys)
        assert (run.code, run.out) == (0, "Available devices:\n  CUDA0: A GPU (2048 MiB, 1024 MiB free)\n")

    def test_check_says_what_of_a_llama_server_line_changes_nothing(self, capsys: pytest.CaptureFixture[str]) -> None:
        run = Run(["check", "--jinja", "--no_slots", "--threads-http", "4"], capsys)
        assert run.code == 0
        assert "  --jinja changes nothing: chat templates are always Jinja\n" in run.out
        assert "  --threads-http changes nothing: " in run.out

    def test_what_is_refused_of_it_is_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        run = Run(["--tools", "all"], capsys)
        assert (run.code, run.out) == (1, "")
        assert run.err.startswith("ggufd: --tools: this server runs no tools")

    def test_check_says_what_would_be_run(self, capsys: pytest.CaptureFixture[str]) -> None:
        run = Run(["check", "-np", "2", "-c", "8192", "-ngl", "0", "-fa", "on", "--temp", "0.5"], capsys)
        assert run.code == 0
        for words in ("2 slots of 4,096 tokens each", "the demo model", "all on the CPU", "temperature 0.5"):
            assert words in run.out
        assert "no API key" in run.out

    def test_check_says_what_is_left_to_the_machine(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "4 slots of 8,192 tokens each" in Run(["check"], capsys).out

    def test_check_refuses_what_the_cpu_would_end_the_process_over(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        metadata, tensors = gguf_files.llama()
        path = gguf_files.write(tmp_path / "m.gguf", metadata, [*tensors, ("blk.0.attn_q.bias", (64,), "f16")])
        run = Run(["check", "-m", str(path), "-ngl", "0"], capsys)
        assert (run.code, run.out) == (1, "")
        assert run.err.endswith("is of type F16, expected F32 on a CPU; convert the model again\n")

    def test_check_says_what_does_not_fit(self, capsys: pytest.CaptureFixture[str]) -> None:
        out = Run(["check", "-c", "1000000000", "-np", "16"], capsys).out
        assert "16 slots of 62,500,000 tokens each" in out
        assert "Does not fit: it needs " in out

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (["-ngl", "20"], "ggufd: --n-gpu-layers 20: llama.cpp sees no GPU"),
            (["-ts", "3,1"], "ggufd: --tensor-split 3,1: llama.cpp sees no GPU"),
            (["-mg", "1"], "ggufd: --main-gpu 1: llama.cpp sees no GPU"),
            (["--require-gpu"], "ggufd: require_gpu is set, but no layer runs on a GPU"),
        ],
    )
    def test_check_refuses_a_gpu_that_is_not_there_as_a_start_does(
        self, flags: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("ggufd.llama.model.system.device_memory", lambda: ())
        run = Run(["check", *flags], capsys)
        assert (run.code, run.out) == (1, "")
        assert run.err.startswith(words)

    def test_python_m_is_the_same(self) -> None:
        command = [sys.executable, "-m", "ggufd", "--version"]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=root, check=True)
        assert done.stdout == f"ggufd {__version__}\n"

    def test_ctrl_c_while_a_command_is_imported_says_nothing(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def interrupted(*command: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(cli, "build_app", interrupted)
        run = Run([], capsys)
        assert (run.code, run.out, run.err) == (130, "", "")

    @pytest.mark.parametrize("wrong", [["--port", "abc"], ["--no-such-flag"], ["-m", "/nonexistent.gguf"]], ids=str)
    def test_processes_that_were_started_for_a_server_that_cannot_be_are_gone(
        self, wrong: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        started: list[int | None] = []
        before = PrestartedProcess.__init__

        def noting(self: PrestartedProcess, *args: Any, **kwargs: Any) -> None:
            before(self, *args, **kwargs)
            started.append(self.process.pid)

        monkeypatch.setattr(PrestartedProcess, "__init__", noting)
        run = Run(["serve", *wrong], capsys)
        assert run.code in (1, 2)
        assert len(started) == 2
        assert not any(pid is not None and psutil.pid_exists(pid) for pid in started)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("arguments", [["--help"], ["serve", "-h"], ["--version"], ["check"]], ids=str)
    def test_a_command_that_serves_nothing_starts_no_process(
        self, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def started(*_: object, **__: object) -> None:
            raise AssertionError("a process was started")

        monkeypatch.setattr(PrestartedProcess, "__init__", started)
        assert Run(arguments, capsys).code == 0

    def test_where_no_process_can_be_started_the_settings_are_still_read(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def refused(*_: object, **__: object) -> None:
            raise BlockingIOError("no more processes")

        monkeypatch.setattr(PrestartedProcess, "__init__", refused)
        assert "port" in Run(["serve", "--port", "abc"], capsys).err

    def test_the_command_line_brings_no_http_and_no_binding(self) -> None:
        code = "import sys, ggufd.cli as c; c.build_app('serve'); print(*sys.modules)"
        root = Path(__file__).parents[2]
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=root, check=True
        )
        assert not {"fastapi", "uvicorn", "llama_cpp", "numpy", "jinja2"} & set(done.stdout.split())


def context(**flags: str) -> ContextParams:
    config = sources.load(None, flags, {})
    return engine_settings.engine_config(config, hub.ModelFile(Path("m.gguf"), 0)).context


class TestContextRule:
    """llama-server's: -c is the total with -np, each slot's without; 0 is left to the engine."""

    def test_both(self) -> None:
        made = context(ctx_size="8192", parallel="4")
        assert (made.n_ctx, made.n_slots) == (2048, 4)

    def test_the_size_alone(self) -> None:
        made = context(ctx_size="8192")
        assert (made.n_ctx, made.n_slots) == (8192, 4)

    def test_the_slots_alone(self) -> None:
        made = context(parallel="2")
        assert (made.n_ctx, made.n_slots) == (0, 2)

    def test_neither(self) -> None:
        made = context()
        assert (made.n_ctx, made.n_slots) == (0, 4)

    def test_the_rest_goes_over_unchanged(self) -> None:
        made = context(cache_type_k="q8_0", threads="3", rope_freq_base="5e5", ubatch_size="64", rope_scaling="yarn")
        assert (made.cache_type_k, made.n_threads, made.rope_freq_base) == ("q8_0", 3, 5e5)
        assert (made.n_ubatch, made.rope_scaling) == (64, "yarn")


@pytest.mark.parametrize(
    ("flags", "pooling", "embeddings"),
    [
        ({}, None, False),
        ({"embeddings": True}, None, True),
        ({"pooling": "cls"}, "cls", False),
        ({"reranking": True}, "rank", False),
        ({"embeddings": True, "pooling": "rank"}, "rank", True),
    ],
)
def test_vectors_are_made_as_configured(flags: dict[str, Any], pooling: str | None, embeddings: bool) -> None:
    made = engine_settings.engine_config(sources.load(None, flags, {}), hub.ModelFile(Path("m.gguf"), 0))
    assert (made.pooling, made.embeddings) == (pooling, embeddings)


class TestModelParams:
    def test_auto_layers_are_all(self) -> None:
        model = hub.ModelFile(Path("m.gguf"), 0)
        assert engine_settings.engine_config(sources.load(None, {}, {}), model).model.n_gpu_layers is None
        config = sources.load(None, {"n_gpu_layers": "7", "mmap": False}, {})
        made = engine_settings.engine_config(config, model).model
        assert (made.n_gpu_layers, made.mmap, made.path) == (7, False, "m.gguf")

    def test_the_models_name_is_the_alias_else_the_files(self) -> None:
        model = hub.ModelFile(Path("a/m.Q4_0.gguf"), 0)
        assert api_settings.model_id(sources.load(None, {}, {}), model) == "m.Q4_0"
        assert api_settings.model_id(sources.load(None, {"alias": "x"}, {}), model) == "x"

    def test_of_several_aliases_the_first_of_the_alphabet_is_the_models_name(self) -> None:
        config = sources.load(None, {"alias": "m, fim,code", "tags": "chat,small"}, {})
        made = api_settings.api_config(config, hub.ModelFile(Path("a/m.Q4_0.gguf"), 0))
        assert (made.model_id, made.model_aliases) == ("code", ("code", "fim", "m"))
        assert (made.model_tags, made.model_file) == (("chat", "small"), "m.Q4_0.gguf")


class TestApiConfig:
    def test_sampling_defaults_are_those_that_were_set(self) -> None:
        config = sources.load(None, {"temperature": "0.5", "seed": "1"}, {})
        made = api_settings.api_config(config, hub.ModelFile(Path("m.gguf"), 0))
        assert made.sampling == {"temperature": 0.5, "seed": 1}
        assert made.keys is None

    def test_where_responses_are_kept_and_how_many(self) -> None:
        model = hub.ModelFile(Path("m.gguf"), 0)
        made = api_settings.api_config(sources.load(None, {}, {}), model)
        assert (made.responses_path, made.max_responses, made.max_responses_bytes) == (None, 1000, 64 << 20)
        set_to = {"responses_path": "r.sqlite", "max_responses": "5", "max_responses_mib": "2"}
        made = api_settings.api_config(sources.load(None, set_to, {}), model)
        assert (made.responses_path, made.max_responses, made.max_responses_bytes) == (Path("r.sqlite"), 5, 2 << 20)

    def test_how_long_and_how_many_streams_are_kept(self) -> None:
        model = hub.ModelFile(Path("m.gguf"), 0)
        assert api_settings.api_config(sources.load(None, {}, {}), model).streams == StreamLimits()
        set_to = {
            "resumable": "true",
            "max_streams": "1",
            "max_streams_per_key": "2",
            "max_streams_mib": "3",
            "max_streams_per_key_mib": "4",
            "max_stream_mib": "5",
            "stream_unread_s": "6.5",
            "stream_kept_s": "7",
        }
        made = api_settings.api_config(sources.load(None, set_to, {}), model)
        assert made.streams == StreamLimits(True, 1, 2, 3 << 20, 4 << 20, 5 << 20, 6.5, 7.0)

    def test_where_batches_are_kept_and_how_much_of_them(self) -> None:
        model = hub.ModelFile(Path("m.gguf"), 0)
        made = api_settings.api_config(sources.load(None, {}, {}), model)
        assert (made.batch_dir, made.batch_keep_s) == (None, 30 * 24 * 3600)
        assert made.batch_limits == StorageLimits(1 << 30, 64 << 20, 100)
        set_to = {"batch_dir": "b", "batch_max_mib": "5", "batch_max_file_mib": "2", "batch_max_files_per_key": "7"}
        made = api_settings.api_config(sources.load(None, set_to | {"batch_keep_days": "1"}, {}), model)
        assert (made.batch_dir, made.batch_keep_s) == (Path("b").absolute(), 24 * 3600)
        assert made.batch_limits == StorageLimits(5 << 20, 2 << 20, 7)


class TestListen:
    def test_the_loopback_is_both_families(self) -> None:
        sockets = listen.bind("127.0.0.1", 0)
        ports = {one.getsockname()[1] for one in sockets}
        families = {one.family for one in sockets}
        for one in sockets:
            one.close()
        assert len(ports) == 1
        assert families <= {socket.AF_INET, socket.AF_INET6}
        assert socket.AF_INET in families

    @pytest.mark.parametrize(
        ("host", "words"), [("203.0.113.7", "not an address of this machine"), ("no such host", "cannot be resolved")]
    )
    def test_an_address_that_is_not_ours(self, host: str, words: str) -> None:
        with pytest.raises(StartupError, match=words):
            listen.bind(host, 0)

    def test_the_url_says_tls(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as one:
            assert listen.url_of("127.0.0.1", [one], is_tls=True) == f"https://127.0.0.1:{one.getsockname()[1]}"

    @pytest.mark.parametrize(
        ("host", "shown"),
        [
            ("0.0.0.0", "127.0.0.1"),
            ("::", "[::1]"),
            ("::1", "[::1]"),
            ("localhost", "localhost"),
            ("10.1.1.1", "10.1.1.1"),
        ],
    )
    def test_the_url_works_here(self, host: str, shown: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as one:
            assert listen.url_of(host, [one]) == f"http://{shown}:{one.getsockname()[1]}"


class TestTls:
    @pytest.fixture
    def files(self, tmp_path: Path) -> dict[str, str]:
        """PEM files by what they hold."""
        first, second = (trustme.CA().issue_cert("localhost") for _ in range(2))
        (tmp_path / "cert").write_bytes(first.cert_chain_pems[0].bytes())
        (tmp_path / "key").write_bytes(first.private_key_pem.bytes())
        (tmp_path / "other key").write_bytes(second.private_key_pem.bytes())
        loaded = serialization.load_pem_private_key(first.private_key_pem.bytes(), None)
        locked = loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
        (tmp_path / "locked key").write_bytes(locked)
        names = ("cert", "key", "other key", "locked key", "missing", "")
        return {name: str(tmp_path / name) if name else "" for name in names}

    def test_both_or_neither(self, files: dict[str, str]) -> None:
        assert listen.check_tls(files["key"], files["cert"])
        assert not listen.check_tls("", "")

    @pytest.mark.parametrize(
        ("key", "cert", "words"),
        [
            ("key", "", "set --ssl-cert-file too"),
            ("", "cert", "set --ssl-key-file too"),
            ("missing", "cert", "cannot be read: No such file"),
            ("cert", "cert", "are not a certificate and its private key"),
            ("other key", "cert", "are not a certificate and its private key"),
            ("locked key", "cert", "is encrypted"),
        ],
    )
    def test_what_cannot_be_used_is_said_before_anything_is_loaded(
        self, files: dict[str, str], key: str, cert: str, words: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        flags = [
            flag for name, pem in (("--ssl-key-file", key), ("--ssl-cert-file", cert)) for flag in (name, files[pem])
        ]
        for command in (["check"], []):
            run = Run([*command, *flags], capsys)
            assert (run.code, run.out) == (1, "")
            assert words in run.err
            assert run.err.count("\n") == 1
