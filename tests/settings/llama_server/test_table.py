"""The table of llama-server's flags: against llama.cpp's source, both ways, and against our settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ggufd.settings import flags
from ggufd.settings.config import Config, settings
from ggufd.settings.llama_server import translation
from ggufd.settings.llama_server.flag import Exports, Fixed, Flag, Honoured, Outcome, Part, Refused, Sets, Shows, Taken
from ggufd.settings.llama_server.table import BY_NAME, BY_VARIABLE, TABLE
from tests.support.llama_server_flags import Declared, declared, settings_of
from tests.support.models.vocabularies import source_file


@pytest.fixture(autouse=True)
def _no_settings_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("platformdirs.user_config_path", lambda name: tmp_path / "user" / name)
    (tmp_path / "grammar.gbnf").write_text('root ::= "yes"', "utf-8")
    (tmp_path / "schema.json").write_text('{"type": "object"}', "utf-8")


@pytest.fixture(scope="module")
def theirs() -> list[Declared]:
    found = list(declared(source_file("common/arg.cpp").read_text("utf-8")))
    assert len(found) > 240, "llama.cpp writes its options in another way now"
    return found


class TestAgainstTheSource:
    def test_every_flag_of_llama_server_is_in_the_table(self, theirs: list[Declared]) -> None:
        names = {name for one in theirs for name in (*one.names, *one.off_names)}
        assert sorted(names - BY_NAME.keys()) == []

    def test_the_table_has_no_flag_that_llama_server_lacks(self, theirs: list[Declared]) -> None:
        names = {name for one in theirs for name in (*one.names, *one.off_names)}
        ours = {name for name, flag in BY_NAME.items() if not flag.is_former}
        assert sorted(ours - names) == []

    def test_former_flags_are_former(self, theirs: list[Declared]) -> None:
        names = {name for one in theirs for name in (*one.names, *one.off_names)}
        assert {name for flag in TABLE if flag.is_former for name in (*flag.names, *flag.off_names)} & names == set()

    def test_names_variables_and_values_are_the_same(self, theirs: list[Declared]) -> None:
        for one in theirs:
            flag = BY_NAME[one.names[0]]
            assert (set(flag.names), set(flag.off_names)) == (set(one.names), set(one.off_names))
            assert (flag.env, flag.n_values) == (one.env, one.n_values), one.names

    def test_the_table_has_no_variable_that_llama_server_lacks(self, theirs: list[Declared]) -> None:
        ours = {flag.env for flag in TABLE if flag.env and not flag.is_former}
        assert sorted(ours - {one.env for one in theirs}) == []


def test_every_name_and_every_variable_stands_once() -> None:
    names = [name for flag in TABLE for name in (*flag.names, *flag.off_names)]
    variables = [name for flag in TABLE for name in flag.variables]
    assert len(names) == len(set(names)) == len(BY_NAME)
    assert len(variables) == len(set(variables)) == len(BY_VARIABLE)


def outcomes() -> list[tuple[Flag, str, Outcome]]:
    """Each flag under a name of its on form and of its off form."""
    on = [(flag, flag.title, flag.outcome) for flag in TABLE]
    off = [(flag, flag.off_names[0], flag.off_outcome) for flag in TABLE if flag.off_outcome is not None]
    return [*on, *off]


def test_what_is_said_of_a_flag_reads_as_a_clause() -> None:
    for _, name, outcome in outcomes():
        text = outcome.why if isinstance(outcome, Taken) else outcome.instead if isinstance(outcome, Refused) else "ok"
        assert re.fullmatch(r"[^\n]*[^.:;\n]", text), name
        first = text.split()[0]
        assert not (first[0].isupper() and first[1:].islower()) or first in ("Docker's",), name


def keys_of(outcome: Honoured) -> tuple[str, ...]:
    match outcome:
        case Sets(keys) | Part(_, _, keys):
            return keys
        case Fixed(values):
            return tuple(values)
    return ()


VALUES: dict[str, Any] = {
    "--model": "m.gguf",
    "--model-url": "https://huggingface.co/o/r/resolve/main/m.gguf",
    "--hf-repo": "o/r:Q8_0",
    "--hf-file": "m.gguf",
    "--hf-token": "secret",
    "--alias": "a",
    "--load-mode": "none",
    "--override-kv": "llama.expert_used_count=int:3",
    "--lora": "a.gguf",
    "--lora-scaled": "a.gguf:0.5",
    "--control-vector": "a.gguf",
    "--control-vector-scaled": "a.gguf:0.5",
    "--control-vector-layer-range": ("1", "4"),
    "--split-mode": "row",
    "--tensor-split": "3,1",
    "--device": "CUDA0",
    "--override-tensor": "exps=CPU",
    "--rpc": "host:50052",
    "--numa": "isolate",
    "--flash-attn": "1",
    "--cache-type-k": "q8_0",
    "--cache-type-v": "bf16",
    "--rope-scaling": "yarn",
    "--yarn-ext-factor": "0.5",
    "--rope-scale": "2",
    "--pooling": "cls",
    "--slot-save-path": "slots",
    "--media-path": "media",
    "--cpu-mask": "0xF",
    "--cpu-range": "2-3",
    "--spec-draft-model": "d.gguf",
    "--hf-repo-draft": "o/d",
    "--spec-draft-hf": "o/d",
    "--spec-draft-p-min": "0.5",
    "--spec-type": "none",
    "--samplers": "top_k;temp",
    "--sampling-seq": "kt",
    "--sampler-seq": "kt",
    "--top-p": "0.5",
    "--min-p": "0.5",
    "--typical-p": "0.5",
    "--xtc-probability": "0.5",
    "--xtc-threshold": "0.5",
    "--adaptive-target": "0.5",
    "--adaptive-decay": "0.5",
    "--mirostat-lr": "0.5",
    "--dry-sequence-breaker": "\\n",
    "--logit-bias": "15043-1",
    "--grammar": 'root ::= "yes"',
    "--grammar-file": "grammar.gbnf",
    "--json-schema": '{"type": "object"}',
    "--json-schema-file": "schema.json",
    "--reverse-prompt": "END",
    "--chat-template": "{{ messages }}",
    "--chat-template-file": "t.jinja",
    "--chat-template-kwargs": '{"a": 1}',
    "--reasoning-format": "none",
    "--reasoning": "off",
    "--reasoning-effort": "low",
    "--reasoning-budget": "8",
    "--reasoning-budget-message": "enough",
    "--host": "::1",
    "--api-prefix": "/llm",
    "--api-key": "k",
    "--api-key-file": "keys.txt",
    "--ssl-key-file": "k.pem",
    "--ssl-cert-file": "c.pem",
    "--sse-ping-interval": "30",
    "--cors-origins": "https://example.org",
    "--log-file": "log.txt",
    "--verbosity": "5",
}
"""A value for each flag that takes one, other than the default; 1 for those that are not here."""

BESIDE: dict[str, list[str]] = {
    "--hf-file": ["--hf-repo", "o/r"],
    "--no-escape": ["--dry-sequence-breaker", "\\n"],
    "--escape": ["--dry-sequence-breaker", "\\n"],
}
"""What a flag needs beside itself."""

DEFAULTS = frozenset(
    (
        "--mmap",
        "--mmproj-auto",
        "--mmproj-offload",
        "--swa-full",
        "--kv-offload",
        "--no-context-shift",
        "--webui",
        "--slots",
        "--no-log-jsonl",
        "--no-skip-chat-parsing",
        "--prefill-assistant",
    )
)
"""Flags that ask for what is the default here."""

HONOURED = [(flag, name, one) for flag, name, one in outcomes() if isinstance(one, Honoured)]


def arguments_of(flag: Flag, name: str) -> list[str]:
    value = VALUES.get(flag.title, VALUES.get(name, "1"))
    values = [] if not flag.n_values else list(value) if isinstance(value, tuple) else [value]
    return [*BESIDE.get(name, ()), name, *values]


def changed(config: Config) -> set[str]:
    plain = Config()
    return {
        one.key
        for one in settings()
        if getattr(getattr(config, one.section), one.key) != getattr(getattr(plain, one.section), one.key)
    }


@pytest.mark.parametrize(("flag", "name", "outcome"), HONOURED, ids=[name for _, name, _ in HONOURED])
def test_an_honoured_flag_changes_its_setting(flag: Flag, name: str, outcome: Honoured) -> None:
    arguments = arguments_of(flag, name)
    line = translation.command_line(arguments, flags.options(), {})
    match outcome:
        case Exports(variable, value):
            assert line.exports == {variable: value or arguments[-1]}
        case Shows(command):
            assert line.shows == command
        case _:
            keys = set(keys_of(outcome))
            assert set() < keys <= {one.key for one in settings()}
            # The default is written out too, so that it overrides a variable or a file.
            assert any(f"--{key}".replace("_", "-") in text for key in keys for text in line.arguments) or any(
                f"--no-{key}".replace("_", "-") in line.arguments for key in keys
            )
            is_changed = bool(changed(settings_of(arguments)) & keys)
            assert is_changed == (name not in DEFAULTS)


WITH_VARIABLE = [(flag, name, one) for flag, name, one in HONOURED if flag.env and not isinstance(one, Exports | Shows)]


@pytest.mark.parametrize(
    ("flag", "name", "outcome"), WITH_VARIABLE, ids=[f"{one[0].env} {one[1]}" for one in WITH_VARIABLE]
)
def test_an_honoured_variable_changes_the_same(flag: Flag, name: str, outcome: Honoured) -> None:
    is_off = name in flag.off_names
    value = arguments_of(flag, name)[-1] if flag.n_values else "0" if is_off else "1"
    beside = {"LLAMA_ARG_HF_REPO": "o/r"} if flag.env == "LLAMA_ARG_HF_FILE" else {}
    by_variable = settings_of([], {**beside, flag.env: value})
    assert by_variable == settings_of(arguments_of(flag, name))
    if is_off:
        assert settings_of([], {flag.off_env: "any"}) == by_variable


def test_a_flag_of_ours_that_llama_server_has_too_means_the_same() -> None:
    """A name in both is one setting: nobody has to know for which server a line was written."""
    for one in settings():
        for flag in one.flags:
            if (row := BY_NAME.get(flag)) is not None:
                assert isinstance(row.outcome_of(flag), Honoured), flag
                assert one.key in keys_of(row.outcome_of(flag)), flag
