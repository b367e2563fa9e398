"""Facts of the build."""

from __future__ import annotations

import llama_cpp

from server.llama import system


def test_the_build_names_the_binding() -> None:
    assert system.build() == f"llama-cpp-python {llama_cpp.__version__}"


def test_the_info_is_one_line() -> None:
    assert "CPU" in system.info()
    assert "\n" not in system.info()


def test_devices_are_there_only_where_offload_is() -> None:
    devices = system.gpu_devices()
    assert all(isinstance(device, str) and device for device in devices)
    assert system.supports_gpu() or not devices
