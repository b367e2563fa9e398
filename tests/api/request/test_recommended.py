"""What a model file recommends becomes the default, below what the user configured."""

from __future__ import annotations

from ggufd.api.request.recommended import recommended


def test_every_key_that_llama_cpp_writes_is_read() -> None:
    metadata = {
        "general.sampling.sequence": "ekpt",
        "general.sampling.top_k": "20",
        "general.sampling.top_p": "0.95",
        "general.sampling.min_p": "0.05",
        "general.sampling.xtc_probability": "0.5",
        "general.sampling.xtc_threshold": "0.1",
        "general.sampling.temp": "0.600000",
        "general.sampling.penalty_last_n": "128",
        "general.sampling.penalty_repeat": "1.1",
        "general.sampling.mirostat": "2",
        "general.sampling.mirostat_tau": "4",
        "general.sampling.mirostat_eta": "0.2",
    }
    assert recommended(metadata) == {
        "samplers": ("penalties", "top_k", "top_p", "temperature"),
        "top_k": 20,
        "top_p": 0.95,
        "min_p": 0.05,
        "xtc_probability": 0.5,
        "xtc_threshold": 0.1,
        "temperature": 0.6,
        "repeat_last_n": 128,
        "repeat_penalty": 1.1,
        "mirostat": 2,
        "mirostat_tau": 4.0,
        "mirostat_eta": 0.2,
    }


def test_names_may_be_written_out() -> None:
    assert recommended({"general.sampling.sequence": "top_k;nonsense;min_p"})["samplers"] == ("top_k", "min_p")


def test_nonsense_and_silence_recommend_nothing() -> None:
    assert recommended({"general.name": "x", "general.sampling.temp": "hot", "general.sampling.top_p": "nan"}) == {}
