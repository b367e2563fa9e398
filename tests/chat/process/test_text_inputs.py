"""Texts for vectors, pairs for a reranker, and gaps to be filled, as tokens of real vocabularies."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.chat.process.text import TextModel
from ggufd.llama.model.model import GgufModel
from tests.support.models.tiny_bert import CLS, SEP, write_tiny_bert
from tests.support.models.tiny_model import quiet_llama
from tests.support.models.vocabularies import demo_model, vocabulary


def text_of(path: str | Path) -> TextModel:
    quiet_llama()
    return TextModel(GgufModel(str(path)))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    return text_of(write_tiny_bert(tmp_path_factory.mktemp("bert") / "bert.gguf", "cls"))


@pytest.fixture(scope="module")
def coder() -> TextModel:
    return text_of(vocabulary("starcoder"))


class TestInputs:
    @given(text=st.text("abc, ", max_size=60), limit=st.integers(2, 40))
    def test_a_text_that_is_cut_keeps_what_stands_around_it(self, bert: TextModel, text: str, limit: int) -> None:
        (whole,), (cut,) = bert.encode_inputs([text]), bert.encode_inputs([text], limit)
        assert (whole[0], whole[-1]) == (cut[0], cut[-1]) == (CLS, SEP)
        assert len(cut) == min(len(whole), limit)
        assert cut[:-1] == whole[: len(cut) - 1]

    def test_a_chat_models_text_is_cut_at_its_end(self) -> None:
        demo = text_of(demo_model())
        (whole,), (cut,) = demo.encode_inputs(["one two three four five"]), demo.encode_inputs(["one two three"], 2)
        assert cut == whole[:2]


class TestPairs:
    def test_bert_reads_a_query_and_a_document(self, bert: TextModel) -> None:
        first, second = bert.encode_pairs("ab", ["c", "de"])
        inside = [bert.encode(text, add_special=False) for text in ("ab", "c", "de")]
        assert first == [CLS, *inside[0], SEP, *inside[1], SEP]
        assert second == [CLS, *inside[0], SEP, *inside[2], SEP]

    def test_a_template_of_the_file_goes_before(self, bert: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(GgufModel, "rerank_template", "q: {query} d: {document}")
        (pair,) = bert.encode_pairs("a {document}", ["b"])
        assert pair == bert.encode("q: a {document} d: b", add_special=False)


class TestInfill:
    def text(self, model: TextModel, prefix: str, suffix: str, **changes: object) -> str:
        return model.decode(model.encode_infill(prefix, suffix, **changes))  # type: ignore[arg-type]

    def test_other_files_come_first(self, coder: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
        gap = "<fim_prefix>a = <fim_suffix>\n<fim_middle>"
        files = [("b.py", "b = 2\n"), ("c.py", "c = 3\n")]
        assert self.text(coder, "a = ", "\n") == gap
        plain = "\n\n--- b.py ---\n\nb = 2\n\n\n--- c.py ---\n\nc = 3\n"
        assert self.text(coder, "a = ", "\n", files=files) == plain + gap
        # Any two special tokens will do; this vocabulary does not say which ones they are.
        repository, mark = 4, 5
        monkeypatch.setitem(coder._vocabulary.__dict__, "repository_tokens", (repository, mark))
        assert self.text(coder, "a = ", "\n", files=files) == (
            "<R>repository\n<F>b.py\nb = 2\n<F>c.py\nc = 3\n<F>current\n".replace(
                "<R>", coder.decode([repository])
            ).replace("<F>", coder.decode([mark]))
            + gap
        )

    @given(sizes=st.tuples(*[st.integers(0, 40)] * 3), limit=st.integers(8, 60))
    def test_what_is_too_long_loses_its_far_ends(
        self, coder: TextModel, sizes: tuple[int, int, int], limit: int
    ) -> None:
        prefix, suffix, other = (" word" * n for n in sizes)
        whole = coder.encode_infill(prefix + "(", ")" + suffix, [("f", other)])
        cut = coder.encode_infill(prefix + "(", ")" + suffix, [("f", other)], limit)
        assert len(cut) <= limit
        if len(whole) < limit:
            assert cut == whole
        text = coder.decode(cut)
        assert "(<fim_suffix>)" in text
        assert text.endswith("<fim_middle>")
