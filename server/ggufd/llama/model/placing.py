"""Checks of the placement settings against what the build and the machine have. Knows no llama_cpp.

Patterns of tensors are C++ regular expressions. One that C++ could not read would end the process, so only what both
languages read the same is let through. Every check raises ModelError, one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from ggufd.errors import ModelError
from ggufd.llama.params import ModelParams

_PLAIN = re.compile(r"[\w.^$|()\[\]*+?\\-]{1,200}", re.ASCII)


def check_overrides(overrides: Sequence[tuple[str, str]], buffers: Iterable[str]) -> None:
    """Check of tensor overrides: buffers of this build, valid patterns."""
    known = tuple(buffers)
    for pattern, name in overrides:
        if name not in known:
            raise ModelError(
                f"override_tensor {pattern}={name}: this build has no such buffer; it has {', '.join(known)}"
            )
        if not _is_readable(pattern):
            raise ModelError(
                f"override_tensor {pattern}={name}: not a pattern; expected a regular expression over tensor names"
            )


def _is_readable(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return _PLAIN.fullmatch(pattern) is not None and "(?" not in pattern


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_N = TypeVar("_N", bound=_Named)
_NO_DEVICE = ("none",)


def chosen_devices(names: Sequence[str], devices: Sequence[_N]) -> tuple[_N, ...]:
    """The devices of these names, in their order; none at all for `none`, all without a name."""
    if not names:
        return tuple(devices)
    if tuple(names) == _NO_DEVICE:
        return ()
    by_name = {one.name: one for one in devices}
    unknown = next((name for name in names if name not in by_name), None)
    if unknown is not None:
        has = f"it sees {', '.join(by_name)}" if by_name else "it sees no GPU"
        raise ModelError(f"--device {unknown}: llama.cpp has no such device; {has} (--list-devices)")
    return tuple(by_name[name] for name in names)


def check_gpus(model: ModelParams, gpus: Sequence[str]) -> None:
    """Check of settings that need GPUs; `gpus` are the descriptions of those that there are."""
    if not gpus:
        wishes = (
            ("--n-gpu-layers", model.n_gpu_layers),
            ("--tensor-split", model.tensor_split),
            ("--main-gpu", model.main_gpu),
        )
        for flag, wish in wishes:
            if wish:
                shown = ",".join(f"{share:g}" for share in wish) if isinstance(wish, tuple) else wish
                raise ModelError(
                    f"{flag} {shown}: llama.cpp sees no GPU; leave it out, or install a build of llama-cpp-python "
                    "for your GPU"
                )
        return
    if len(model.tensor_split) > len(gpus):
        raise ModelError(
            f"--tensor-split names {len(model.tensor_split)} shares, but there are {len(gpus)} GPUs: {', '.join(gpus)}"
        )
    if model.split_mode == "none" and model.main_gpu >= len(gpus):
        raise ModelError(f"--main-gpu {model.main_gpu}: there are {len(gpus)} GPUs, counted from 0")


def check_rpc(servers: Sequence[str], *, has_rpc: bool) -> None:
    """Check that the build can use RPC servers."""
    if servers and not has_rpc:
        raise ModelError(
            f"--rpc {','.join(servers)}: this build of llama.cpp has no RPC backend; install llama-cpp-python with "
            'CMAKE_ARGS="-DGGML_RPC=on"'
        )


def refuse_cpu(n_gpu_layers: int) -> None:
    """Check of `require_gpu`: raises ModelError where no layer is on a GPU."""
    if n_gpu_layers == 0:
        raise ModelError(
            "require_gpu is set, but no layer runs on a GPU: give the process a GPU and a build of "
            "llama-cpp-python for it, or unset require_gpu"
        )
