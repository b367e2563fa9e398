"""Text to tokens and back, conversations to prompts, grammar checks: over one vocabulary, synchronous.

Runs where a stranger's text may crash C or hang a template, so in a process that may die (`chat.process.worker`). Holds
the vocabulary only, no weights. Knows nothing of processes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from ggufd.chat.answers.answer_planner import AnswerPlanner
from ggufd.chat.deltas.thinking import Thinking
from ggufd.chat.images import ImageMarkers
from ggufd.chat.prompt import ChatPrompt, ImagePlace, RenderedChat, TextInfo, TextParams
from ggufd.chat.rendering.renderer import ChatRenderer, begun_answer, needed
from ggufd.chat.rendering.template import CHATML, Template, TemplateError
from ggufd.chat.rendering.validity import check_json, validator_of
from ggufd.engine.messages.sampling import ReasoningBudget
from ggufd.errors import InvalidRequest, ModelError, Unsupported
from ggufd.llama.grammar.grammar import build_tokenizer, check_grammar
from ggufd.llama.grammar.schema import prepared
from ggufd.llama.model.model import GgufModel
from ggufd.llama.model.vocabulary import ModelVocabulary

_SPECIAL_TOKENS = {
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
    "sep_token": "tokenizer.ggml.seperator_token_id",  # spelled so in the format
    "cls_token": "tokenizer.ggml.cls_token_id",
}

_HEADER_BYTES = 8 << 20
"""Vocabulary and chat template lie within it, and it was read already to load them."""


class TextModel:
    """Vocabulary and chat template of one model.

    Raises ModelError when there is no vocabulary, or when the template that replaces the file's is no Jinja.
    """

    def __init__(
        self,
        file: GgufModel,
        chat_template: str | None = None,
        tool_format: str | None = None,
        budget_message: str = "",
        *,
        spm_infill: bool = False,
    ) -> None:
        self._budget_message = budget_message
        self._spm_infill = spm_infill
        vocabulary = file.vocabulary
        if not vocabulary.has_tokenizer:
            raise ModelError(f"{file.path} carries no tokenizer; a model with one is needed.")
        _check_vocabulary(vocabulary, file.path)
        self._file = file
        self._vocabulary = vocabulary
        self._is_fallback = False
        self._template_error: str | None = None
        self._renderer = self._make_renderer(chat_template)
        self._planner = AnswerPlanner(
            self._renderer.source,
            self._split,
            self._prepare_schema,
            knows_tools=self._renderer.knows_tools,
            carries_calls=self._renderer.carries_calls,
            tool_format=tool_format,
        )
        self.info = self._describe(chat_template)

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of a prompt.

        `add_special` puts BOS in front where the model wants one and the text does not begin with it; never an EOS
        behind, since a prompt is to be continued. `parse_special` reads special tokens written out in the text.
        """
        tokens = self._tokenize(text, add_special, parse_special)
        if not add_special:
            return tokens
        bos, eos = self._vocabulary.bos, self._vocabulary.eos
        if self._vocabulary.adds_bos and bos is not None and tokens[:2] == [bos, bos]:
            del tokens[0]
        if self._vocabulary.adds_eos and tokens and tokens[-1] == eos:
            del tokens[-1]
        return tokens

    def encode_inputs(self, texts: Sequence[str], limit: int | None = None) -> list[list[int]]:
        """Token ids of texts whose vectors are wanted, with all that the model puts around one.

        Of a text of more than `limit` tokens the end is cut; what stands behind every text is kept.
        """
        return [self._fitted(self._tokenize(text, True, True), limit) for text in texts]

    def _fitted(self, tokens: list[int], limit: int | None) -> list[int]:
        if limit is None or len(tokens) <= limit:
            return tokens
        closing = self._closing[-limit:]
        return [*tokens[: limit - len(closing)], *closing]

    @cached_property
    def _closing(self) -> list[int]:
        """Tokens that the model puts behind every text: EOS or SEP, mostly nothing."""
        around = self._tokenize("", True, False)
        return around[1:] if self._vocabulary.adds_bos else around

    def encode_pairs(self, query: str, documents: Sequence[str]) -> list[list[int]]:
        """Token ids of a query and each document, as a reranker reads them: the file's template, else BERT's pairs."""
        template = self._file.rerank_template
        if template is not None:
            return [self._tokenize(_filled(template, query, one), False, True) for one in documents]
        words = self._vocabulary
        bos, end = words.bos, words.eos if words.eos is not None else words.sep
        before = [bos] if words.adds_bos and bos is not None else []
        after = [end] if words.adds_eos and end is not None else []
        between = [words.sep] if words.adds_sep and words.sep is not None else []
        head = [*before, *self._tokenize(query, False, False), *after, *between]
        return [[*head, *self._tokenize(one, False, False), *after] for one in documents]

    def encode_infill(
        self, prefix: str, suffix: str, files: Sequence[tuple[str, str]] = (), limit: int | None = None
    ) -> list[int]:
        """Token ids of a fill-in-the-middle prompt; special tokens in its texts are read as text.

        `files` are names and texts of others that may help. Of what is more than `limit` tokens goes first what lies
        farthest: files, then the beginning of the prefix and the end of the suffix, of which a quarter is kept.

        Raises Unsupported when the model has no infill tokens.
        """
        marks = self._vocabulary.infill_tokens
        if marks is None:
            raise Unsupported("This model has no infill tokens, so it cannot fill in before a suffix.", param="suffix")
        before, after, middle = marks
        head, tail = self._tokenize(prefix, False, False), self._tokenize(suffix, False, False)
        others = self._encode_files(files)
        if limit is not None:
            room = max(0, limit - len(marks) - 1)
            n_tail = min(len(tail), max(room // 4, room - len(head)))
            head, tail = _last(head, room - n_tail), tail[:n_tail]
            others = _last(others, room - len(head) - len(tail))
        first, second = (before, *head), (after, *tail)
        if self._spm_infill:
            first, second = second, first
        return self._with_bos([*others, *first, *second, middle])

    def _encode_files(self, files: Sequence[tuple[str, str]]) -> list[int]:
        """Token ids of other files: as models trained on repositories expect them, else behind plain lines."""
        if not files:
            return []
        repository, mark = self._vocabulary.repository_tokens
        tokens = [repository, *self._tokenize("repository\n", False, False)] if repository is not None else []
        for name, text in files:
            if mark is None:
                tokens += self._tokenize(f"\n\n--- {name} ---\n\n{text}", False, False)
            else:
                tokens += [mark, *self._tokenize(f"{name}\n{text}", False, False)]
        return tokens if mark is None else [*tokens, mark, *self._tokenize("current\n", False, False)]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of the tokens, special ones written out; bytes that are no UTF-8 become U+FFFD.

        Pieces are joined as they are: a vocabulary that writes a space before the first word gives it back.
        """
        return b"".join(self.pieces(tokens)).decode("utf-8", "replace")

    def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """Bytes of each token. Raises InvalidRequest for an id that is not in the vocabulary."""
        n_vocab = self._vocabulary.n_vocab
        for token in tokens:
            if not 0 <= token < n_vocab:
                raise InvalidRequest(
                    f"{token} is no token of this model; ids go from 0 to {n_vocab - 1}.", param="tokens"
                )
        return [self._vocabulary.piece(token, special=True) for token in tokens]

    def render(self, chat: ChatPrompt) -> RenderedChat:
        """Prompt of a conversation. Raises InvalidRequest when the template refuses it whatever is repaired."""
        if self._template_error is not None:
            raise InvalidRequest(
                f"{self._template_error} Start the server with --chat-template-file, or use completions.",
                param="messages",
            )
        text, repairs = self._renderer.render(self._planner.prepare(chat))
        tokens, images = self._tokenize_around(text, ImageMarkers(chat.markers))
        if {place.image for place in images} != set(range(len(chat.markers))):
            raise InvalidRequest(
                "The model's chat template leaves out an image of this conversation.", param="messages"
            )
        plan = self._planner.plan(chat, text, begun_answer(chat))
        return RenderedChat(
            text,
            tuple(tokens),
            (*repairs, *plan.loosened),
            self._is_fallback,
            form=plan.form,
            shown=plan.shown,
            grammar=plan.grammar,
            frame=plan.frame,
            reasoning=self._reasoning_limit(plan.reasoning),
            parallel_tool_calls=self._planner.may_repeat(chat),
            images=images,
        )

    def _tokenize_around(self, text: str, markers: ImageMarkers) -> tuple[list[int], tuple[ImagePlace, ...]]:
        """Tokens of a rendered text with BOS, each text between two images by itself, and the images' places."""
        first, *others = markers.texts(text)
        tokens = self._with_bos(self._tokenize(first, False, True))
        places = []
        for image, piece in zip(markers.indexes(text), others, strict=True):
            places.append(ImagePlace(len(tokens), image))
            tokens += self._tokenize(piece, False, True)
        return tokens, tuple(places)

    @lru_cache(maxsize=64)  # noqa: B019 - one text model lives as long as its process
    def check_grammar(self, kind: str, text: str, frame: str = "") -> bool:
        """True, which can be remembered. Raises InvalidRequest unless the grammar can be enforced, in its frame if any.

        What passed is remembered: the same tools come with every message of a chat.
        """
        check_grammar(kind, text, lambda: self._grammar_tokenizer, frame=frame)
        if kind == "json_schema":
            validator_of(text)
        return True

    def check_json(self, schema: str, text: str) -> None:
        """Raises EngineFailure unless a finished text is what its schema asks for."""
        check_json(schema, text)

    def _reasoning_limit(self, thinking: Thinking | None) -> ReasoningBudget | None:
        """Limit on reasoning: a message and its closing tag end it, on a line of its own where it looks like one."""
        if thinking is None:
            return None
        closing = thinking.closing
        line = f"\n{closing}" if closing.startswith("</") else closing
        ending = self._tokenize(f"{self._budget_message}{line}", False, True)
        return ReasoningBudget(thinking.opening, closing, tuple(ending), reopening=thinking.reopening)

    @lru_cache(maxsize=256)  # noqa: B019 - one text model lives as long as its process
    def _prepare_schema(self, schema: str) -> str:
        self.check_grammar("json_schema", schema)
        return prepared(schema)

    def _split(self, text: str) -> list[int | str]:
        """Special tokens of a text, and what stands between them."""
        parts: list[int | str] = []
        for token in self._tokenize(text, False, True):
            if not self._vocabulary.is_special(token):
                continue
            before, mark, after = text.partition(self._piece(token))
            if mark:
                parts += [before, token] if before else [token]
                text = after
        return [*parts, text] if text else parts

    @cached_property
    def _grammar_tokenizer(self) -> Any:
        return build_tokenizer(self._vocabulary)

    def _tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        try:
            return self._vocabulary.tokenize(text, add_special=add_special, parse_special=parse_special)
        except UnicodeEncodeError:
            raise InvalidRequest("The text is no valid Unicode: it has a lone surrogate.") from None
        except ValueError as error:
            raise InvalidRequest(f"The text could not be processed: {error}.") from None

    def _with_bos(self, tokens: list[int]) -> list[int]:
        bos = self._vocabulary.bos
        if not self._vocabulary.adds_bos or bos is None or tokens[:1] == [bos]:
            return tokens
        return [bos, *tokens]

    def _make_renderer(self, replacement: str | None) -> ChatRenderer:
        source = replacement if replacement is not None else self._file.chat_template
        if source is None or not source.strip():
            self._is_fallback = True
            source = CHATML
        try:
            template = Template(source)
        except TemplateError as failure:
            if replacement is not None:
                raise ModelError(str(failure)) from None
            # Completions need no template, so the model is served all the same.
            self._template_error = str(failure)
            template = Template(CHATML)
        return ChatRenderer(template, self._template_variables())

    def _template_variables(self) -> dict[str, str]:
        variables = {"bos_token": self._piece(self._vocabulary.bos), "eos_token": self._piece(self._vocabulary.eos)}
        for name, key in _SPECIAL_TOKENS.items():
            token = self._file.metadata.get(key, "")
            if token.isdecimal() and int(token) < self._vocabulary.n_vocab:
                variables[name] = self._piece(int(token))
        return variables

    def _piece(self, token: int | None) -> str:
        return "" if token is None else self._vocabulary.piece(token, special=True).decode("utf-8", "replace")

    def _describe(self, replacement: str | None) -> TextInfo:
        vocabulary = self._vocabulary
        source = replacement if replacement is not None else self._file.chat_template
        return TextInfo(
            chat_template="" if self._is_fallback else source or "",
            is_fallback=self._is_fallback,
            template_error=self._template_error,
            template_needs=needed(self._renderer),
            bos_token=vocabulary.bos,
            eos_token=vocabulary.eos,
            bos_piece=self._piece(vocabulary.bos),
            eos_piece=self._piece(vocabulary.eos),
            n_vocab=vocabulary.n_vocab,
            adds_bos=vocabulary.adds_bos,
            has_infill=vocabulary.infill_tokens is not None,
            tool_format=self._planner.tool_format.name,
            has_thinking=self._planner.thinking is not None,
            tells_time=self._renderer.tells_time,
            header_digest=_header_digest(self._file.path),
        )


def _check_vocabulary(vocabulary: ModelVocabulary, path: str) -> None:
    """Fail now, in C too, where the vocabulary lacks a token that its tokenizer needs, and not at every text."""
    try:
        vocabulary.tokenize("Hello", add_special=True, parse_special=True)
    except ValueError:
        raise ModelError(f"{path}: its vocabulary encodes no text; convert the model again") from None


def _filled(template: str, query: str, document: str) -> str:
    """Rerank template filled in one pass: a query may hold the word `{document}`."""
    texts = {"{query}": query, "{document}": document}
    return re.sub(r"\{query\}|\{document\}", lambda match: texts[match[0]], template)


def _last(tokens: list[int], n: int) -> list[int]:
    return tokens[max(0, len(tokens) - n) :]


def _header_digest(path: str) -> str:
    """Digest of the beginning of a file; empty where it cannot be read any more."""
    try:
        with Path(path).expanduser().open("rb") as file:
            return hashlib.blake2b(file.read(_HEADER_BYTES), digest_size=16).hexdigest()
    except OSError:
        return ""


def load(params: TextParams) -> TextModel:
    """Text model of a file, without its weights. Raises ModelError, also for another file than was loaded first."""
    model = TextModel(
        GgufModel(params.model.path),
        params.chat_template,
        params.tool_format,
        params.budget_message,
        spm_infill=params.spm_infill,
    )
    if params.header_digest is not None and params.header_digest != model.info.header_digest:
        # The engine computes with the vocabulary that was loaded first.
        path = params.model.path
        raise ModelError(f"{path} is another file than was loaded before: start the server again to serve it")
    return model
