"""Facts of the build."""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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


def test_the_registry_is_the_one_that_llama_cpp_uses() -> None:
    """A wheel has copies of libggml, each with a registry of its own."""
    given, linked = (
        ctypes.cast(lib.ggml_backend_dev_count, ctypes.c_void_p).value
        for lib in (system._registry(), llama_cpp.llama_cpp._lib)
    )
    assert given == linked


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


class LateRegistry:
    """ggml of a build whose backends are libraries of their own: there is a GPU, and the CPU, once they are loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        names: list[bytes] = []
        self.ggml_backend_dev_count = lambda: len(names)
        self.ggml_backend_dev_get = lambda i: i + 1
        self.ggml_backend_dev_type = lambda device: int(names[device - 1] == b"Vulkan0")
        self.ggml_backend_dev_name = lambda device: names[device - 1]
        self.ggml_backend_dev_description = lambda device: b"device " + names[device - 1]
        self.ggml_backend_dev_memory = lambda _device, _free, _total: None
        self.ggml_backend_dev_buffer_type = lambda device: 100 + device
        self.ggml_backend_buft_name = lambda handle: names[handle - 101]
        monkeypatch.setattr(
            llama_cpp, "llama_backend_init", lambda: names.extend(() if names else (b"Vulkan0", b"CPU"))
        )
        monkeypatch.setattr(llama_cpp, "llama_print_system_info", lambda: b"CPU : AVX2 = 1 | " if names else b"")
        # Without the CPU's backend llama.cpp ends the process there.
        monkeypatch.setattr(llama_cpp, "llama_numa_init", lambda strategy: {b"CPU": strategy}[names[1]])
        monkeypatch.setattr(system, "_ggml", lambda: self)

    def __getattr__(self, name: str) -> Any:
        """A function that is declared, and not called."""
        return SimpleNamespace()


class TestBackendsOfTheirOwn:
    """Before a model is loaded, whatever is asked first: placing is decided by what is found then."""

    @pytest.fixture(autouse=True)
    def registry(self, monkeypatch: pytest.MonkeyPatch) -> None:
        LateRegistry(monkeypatch)

    def test_gpus_are_seen(self) -> None:
        assert system.gpu_devices() == ("device Vulkan0",)

    def test_memory_of_gpus_is_seen(self) -> None:
        assert [one.name for one in system.device_memory()] == ["Vulkan0"]

    def test_devices_can_be_chosen(self) -> None:
        assert list(system.device_handles(("Vulkan0",))) == [1, None]

    def test_buffers_are_seen(self) -> None:
        assert system.buffer_types() == {"Vulkan0": 101, "CPU": 102}

    def test_features_of_the_cpu_are_seen(self) -> None:
        assert system.cpu_features() == {"avx2"}

    def test_a_numa_strategy_can_be_set(self) -> None:
        system.use_numa("distribute")


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
