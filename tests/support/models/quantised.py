"""The eight quantisations that model cards list, made by llama.cpp itself."""

from __future__ import annotations

from pathlib import Path

import llama_cpp

from ggufd.models import hub
from tests.support.models.tiny_model import quiet_llama

FTYPES = {"Q2_K": 10, "Q3_K_M": 12, "Q4_0": 2, "Q4_K_M": 15, "Q5_0": 8, "Q5_K_M": 17, "Q6_K": 18, "Q8_0": 7}
"""Name to llama_ftype."""

F32, F16 = 0, 1


def quantise(source: Path, target: Path, ftype: int) -> Path:
    """`target` is `source` in another type, whatever type that is in."""
    quiet_llama()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = ftype, True, 1
    assert llama_cpp.llama_model_quantize(bytes(source), bytes(target), params) == 0
    return target


def demo_pair(folder: Path) -> tuple[Path, Path]:
    """The demo model in F32 and in Q2_K.

    Rows that are computed together come out a little otherwise than alone: by half a logit where activations are
    quantised, by a hundred-thousandth in F32 with a cache in F32 (both measured), where no text changes by it.
    """
    demo = hub.find("").path
    return quantise(demo, folder / "F32.gguf", F32), quantise(demo, folder / "Q2_K.gguf", FTYPES["Q2_K"])
