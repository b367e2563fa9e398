"""Build of llama.cpp, and the devices and memory that it sees."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import llama_cpp
from llama_cpp._ggml import libggml

from ggufd.errors import ModelError
from ggufd.llama.model.placing import check_rpc

_GPU_TYPES = (1, 2)
"""ggml_backend_dev_type: GPU, and GPU that shares the host's memory."""


_CONNECT_S = 3.0


def build() -> str:
    """Version of the binding; llama.cpp's own commit is not exported by it."""
    return f"llama-cpp-python {llama_cpp.__version__}"


def library() -> Path:
    """Path of llama.cpp's library, which may be of another build than the binding (`LLAMA_CPP_LIB_PATH`)."""
    return Path(llama_cpp.llama_cpp._lib._name)


def info() -> str:
    """Features that llama.cpp was compiled for, on one line."""
    _load_backends()
    return str(llama_cpp.llama_print_system_info().decode("utf-8", "replace")).strip()


def gpu_devices() -> tuple[str, ...]:
    """Description of every GPU that llama.cpp sees; empty on a CPU build."""
    ggml = _registry()
    found = []
    for i in range(ggml.ggml_backend_dev_count()):
        device = ggml.ggml_backend_dev_get(i)
        if ggml.ggml_backend_dev_type(device) in _GPU_TYPES:
            found.append(ggml.ggml_backend_dev_description(device).decode("utf-8", "replace"))
    return tuple(found)


class DeviceMemory(NamedTuple):
    """A GPU and its memory in bytes; `shares_ram` where it has none of its own."""

    name: str
    description: str
    free: int
    total: int
    shares_ram: bool


def device_memory() -> tuple[DeviceMemory, ...]:
    """Every GPU that llama.cpp sees, with what is free on it now; empty on a CPU build."""
    ggml = _registry()
    found = []
    for i in range(ggml.ggml_backend_dev_count()):
        device = ggml.ggml_backend_dev_get(i)
        kind = ggml.ggml_backend_dev_type(device)
        if kind in _GPU_TYPES:
            free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
            ggml.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
            name, description = (
                read(device).decode("utf-8", "replace")
                for read in (ggml.ggml_backend_dev_name, ggml.ggml_backend_dev_description)
            )
            found.append(DeviceMemory(name, description, free.value, total.value, kind == _GPU_TYPES[1]))
    return tuple(found)


def device_handles(names: Sequence[str]) -> Any:
    """Array of the devices of these names, as llama.cpp takes it: NULL ends it. Devices of other names are left out."""
    ggml = _registry()
    devices = [ggml.ggml_backend_dev_get(i) for i in range(ggml.ggml_backend_dev_count())]
    by_name = {ggml.ggml_backend_dev_name(one).decode("utf-8", "replace"): one for one in devices}
    found = [by_name[name] for name in names if name in by_name]
    return (ctypes.c_void_p * (len(found) + 1))(*found)


_NUMA = {
    "distribute": llama_cpp.GGML_NUMA_STRATEGY_DISTRIBUTE,
    "isolate": llama_cpp.GGML_NUMA_STRATEGY_ISOLATE,
    "numactl": llama_cpp.GGML_NUMA_STRATEGY_NUMACTL,
}


def use_numa(strategy: str) -> None:
    """Set llama.cpp's strategy for several NUMA nodes; "" leaves it to the system."""
    if strategy:
        _load_backends()
        llama_cpp.llama_numa_init(_NUMA[strategy])


def buffer_types() -> dict[str, int]:
    """Name and handle of each device's buffer type: "CPU", "CUDA0" ..."""
    ggml = _registry()
    found: dict[str, int] = {}
    for i in range(ggml.ggml_backend_dev_count()):
        handle = ggml.ggml_backend_dev_buffer_type(ggml.ggml_backend_dev_get(i))
        if handle:
            found[ggml.ggml_backend_buft_name(handle).decode("utf-8", "replace")] = handle
    return found


def has_rpc() -> bool:
    return bool(llama_cpp.llama_supports_rpc())


def add_rpc_servers(servers: Sequence[str]) -> None:
    """Use the devices of llama.cpp RPC servers as if they were this machine's. Raises ModelError, one line."""
    if not servers:
        return
    check_rpc(servers, has_rpc=has_rpc())
    ggml = _registry()
    address = ggml.ggml_backend_reg_get_proc_address(
        ggml.ggml_backend_reg_by_name(b"RPC"), b"ggml_backend_rpc_add_server"
    )
    add_server = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(address)
    for server in servers:
        # ggml waits long for a server that is not there, or ends the process.
        _check_reachable(server)
        registration = add_server(server.encode())
        if not registration:
            raise ModelError(
                f"--rpc {server}: not a compatible RPC server; start an rpc-server of the same llama.cpp version"
            )
        ggml.ggml_backend_register(registration)


def _check_reachable(server: str) -> None:
    host, _, port = server.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise ModelError(f"--rpc {server}: no connection ({error}); check that rpc-server is running there") from None


def cpu_name() -> str:
    """Name of the model of this CPU, as far as it is told."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_features() -> frozenset[str]:
    """CPU features that this build uses: "avx2", "avx512", "dotprod" ..."""
    return frozenset(name.lower() for name in re.findall(r"(\w+) = 1", info()))


def _load_backends() -> None:
    """Registration of the backends of a build whose backends are libraries of their own (`GGML_BACKEND_DL`).

    llama.cpp does it with the first model. Before that, such a build has no device, not even the CPU.
    """
    llama_cpp.llama_backend_init()


def _registry() -> Any:
    """ggml's device registry, which the binding loads but does not declare."""
    _load_backends()
    ggml = _ggml()
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    ggml.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    ggml.ggml_backend_dev_description.argtypes = [ctypes.c_void_p]
    ggml.ggml_backend_dev_description.restype = ctypes.c_char_p
    ggml.ggml_backend_dev_name.argtypes = [ctypes.c_void_p]
    ggml.ggml_backend_dev_name.restype = ctypes.c_char_p
    ggml.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p] + 2 * [ctypes.POINTER(ctypes.c_size_t)]
    ggml.ggml_backend_dev_memory.restype = None
    ggml.ggml_backend_dev_buffer_type.argtypes = [ctypes.c_void_p]
    ggml.ggml_backend_dev_buffer_type.restype = ctypes.c_void_p
    ggml.ggml_backend_reg_by_name.argtypes = [ctypes.c_char_p]
    ggml.ggml_backend_reg_by_name.restype = ctypes.c_void_p
    ggml.ggml_backend_reg_get_proc_address.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    ggml.ggml_backend_reg_get_proc_address.restype = ctypes.c_void_p
    ggml.ggml_backend_register.argtypes = [ctypes.c_void_p]
    ggml.ggml_backend_register.restype = None
    ggml.ggml_backend_buft_name.argtypes = [ctypes.c_void_p]
    ggml.ggml_backend_buft_name.restype = ctypes.c_char_p
    return ggml


def _ggml() -> Any:
    """ggml with the registry that llama.cpp itself looks into.

    A wheel has copies where a build has links, and the binding's `libggml` is another copy than llama.cpp's, with a
    registry of its own: in that, backends that are loaded later are missing. A library's handle leads to what it is
    linked with, except on Windows, which has no such copies.
    """
    return libggml if sys.platform == "win32" else llama_cpp.llama_cpp._lib
