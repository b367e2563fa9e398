"""Facts of the build."""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import pytest

from ggufd.errors import ModelError
from ggufd.llama.model import system
from ggufd.llama.model.model import Model
from ggufd.llama.params import ModelParams


def test_the_build_names_the_binding() -> None:
    assert system.build() == f"llama-cpp-python {llama_cpp.__version__}"


def test_the_info_is_one_line() -> None:
    assert "CPU" in system.info()
    assert "\n" not in system.info()


def test_devices_are_there_only_where_offload_is() -> None:
    devices = system.gpu_devices()
    assert all(isinstance(device, str) and device for device in devices)
    assert llama_cpp.llama_supports_gpu_offload() or not devices


class FakeRegistry:
    """ggml's registry with an RPC backend; `known` are the servers that speak its protocol."""

    def __init__(self, *known: str) -> None:
        self.known, self.registered = known, list[int]()
        self._add = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(
            lambda server: 1 + known.index(server.decode()) if server.decode() in known else None
        )

    def ggml_backend_reg_by_name(self, name: bytes) -> int:
        assert name == b"RPC"
        return 77

    def ggml_backend_reg_get_proc_address(self, backend: int, name: bytes) -> int | None:
        assert (backend, name) == (77, b"ggml_backend_rpc_add_server")
        return ctypes.cast(self._add, ctypes.c_void_p).value

    def ggml_backend_register(self, registration: int) -> None:
        self.registered.append(registration)


@pytest.fixture
def server() -> Iterator[str]:
    """The address of something that takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


class TestRpc:
    def test_a_build_without_it_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        system.add_rpc_servers(())
        monkeypatch.setattr(llama_cpp, "llama_supports_rpc", lambda: False)
        with pytest.raises(ModelError, match="no RPC backend; install llama-cpp-python with"):
            system.add_rpc_servers(("a:1", "b:2"))

    def test_its_devices_are_registered(self, monkeypatch: pytest.MonkeyPatch, server: str) -> None:
        registry = FakeRegistry(server)
        monkeypatch.setattr(llama_cpp, "llama_supports_rpc", lambda: True)
        monkeypatch.setattr(system, "_registry", lambda: registry)
        system.add_rpc_servers((server,))
        assert registry.registered == [1]

    def test_what_is_no_such_server_is_said(self, monkeypatch: pytest.MonkeyPatch, server: str) -> None:
        monkeypatch.setattr(llama_cpp, "llama_supports_rpc", lambda: True)
        monkeypatch.setattr(system, "_registry", FakeRegistry)
        with pytest.raises(ModelError, match=r"not a compatible RPC server"):
            system.add_rpc_servers((server,))

    def test_where_nothing_answers_is_said_before_c_tries(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        monkeypatch.setattr(llama_cpp, "llama_supports_rpc", lambda: True)
        monkeypatch.setattr(system, "_registry", FakeRegistry)
        with pytest.raises(ModelError, match=f"--rpc 127.0.0.1:{port}: no connection"):
            system.add_rpc_servers((f"127.0.0.1:{port}",))


class TestDevices:
    def test_they_end_with_null(self) -> None:
        handles = system.device_handles(("none",))
        assert list(handles) == [None]
        cpu, end = system.device_handles(("CPU",))
        assert cpu
        assert end is None

    def test_a_model_is_loaded_to_none_of_them(self, tiny_model: Path) -> None:
        model = Model(ModelParams(str(tiny_model), devices=("none",)))
        assert model.n_params > 0
        model.close()


@pytest.mark.parametrize("strategy", ["", "distribute", "isolate", "numactl"])
def test_a_numa_strategy_is_llama_cpps(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not set for real: it would hold for the process of all tests."""
    given: list[int] = []
    monkeypatch.setattr(llama_cpp, "llama_numa_init", given.append)
    system.use_numa(strategy)
    assert given == {"": [], "distribute": [1], "isolate": [2], "numactl": [3]}[strategy]
