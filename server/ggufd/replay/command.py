"""The command `ggufd replay`, and what it prints. Its exit code tells the outcome."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from ggufd.replay.comparison import Parting, ReceiptComparison, ReplayOutcome, compare
from ggufd.replay.receipt_file import ReceiptFile, ReplayError
from ggufd.replay.server import ReplayServer, started

EXIT_CODES = {ReplayOutcome.SAME: 0, ReplayOutcome.PARTED: 3, ReplayOutcome.OTHER: 4}
"""1 is a replay that cannot be done, 2 a command line that is none."""

_FAILED = 1
_INTERRUPTED = 130
_N_BEFORE = 8
_N_AFTER = 24

_Receipt = Annotated[
    Path, typer.Argument(metavar="RECEIPT", help="File with the 'receipt' of an answer, or with the answer.")
]
_Url = Annotated[
    str | None, typer.Option("--url", help="Server that runs; without one the model is loaded here for it.")
]
_Key = Annotated[str | None, typer.Option("--api-key", envvar="GGUFD_REPLAY_API_KEY", help="Key to send.")]
_Timeout = Annotated[float, typer.Option(min=1, help="Seconds to wait for the answer.")]


def replay(
    context: typer.Context, receipt: _Receipt, url: _Url = None, api_key: _Key = None, timeout: _Timeout = 600.0
) -> None:
    """Compute a deterministic answer again, and compare the texts.

    Without --url a server is started with the settings of the receipt; all further flags are those of `ggufd serve`,
    such as --model. The exit code is 0 for the same text, 3 for another one, 4 for another one by another model, other
    settings, hardware or build, 1 where it cannot be computed.
    """
    try:
        code = run(receipt, url, api_key, timeout, context.args)
    except ReplayError as error:
        print(f"ggufd: {error.message}", file=sys.stderr)
        code = _FAILED
    except KeyboardInterrupt:
        code = _INTERRUPTED
    sys.exit(code)


def run(path: Path, url: str | None, api_key: str | None, timeout_s: float, arguments: Sequence[str]) -> int:
    """Replay a receipt and print the outcome; its exit code. Raises `ReplayError`."""
    then = ReceiptFile.read(path)
    if url is not None and arguments:
        raise ReplayError(f"{arguments[0]}: goes with no --url; a server that runs has its settings")
    with contextlib.ExitStack() as stack:
        if url is None:
            url = stack.enter_context(started(then.computed_by.get("settings", {}), arguments))
        server = ReplayServer(url, api_key, timeout_s)
        answer_path, body = then.request
        comparison = compare(then, ReceiptFile.of(server.post(answer_path, body), "the answer of the server"))
        for line in report(then, comparison, server.text):
            print(line)
    return EXIT_CODES[comparison.outcome]


def report(then: ReceiptFile, comparison: ReceiptComparison, text_of: Callable[[Sequence[int]], str]) -> list[str]:
    """Lines that say the outcome; `text_of` gives the text of tokens."""
    n_tokens = sum(len(choice["tokens"]) for choice in then.choices)
    others = [f"  {one}" for one in comparison.differences]
    if comparison.outcome is ReplayOutcome.SAME:
        return [f"same: {n_tokens} tokens", *(["though by other means:", *others] if others else [])]
    if comparison.outcome is ReplayOutcome.OTHER:
        head = [f"other {_listed(comparison.groups)}, which promises nothing", *others]
    else:
        head = ["another text, by the same model, settings, hardware and build"]
    return [*head, *_place(then, comparison, text_of)]


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _place(then: ReceiptFile, comparison: ReceiptComparison, text_of: Callable[[Sequence[int]], str]) -> list[str]:
    if comparison.prompt is not None:
        n_tokens = then.prompts[comparison.prompt]["n_tokens"] if comparison.prompt < len(then.prompts) else 0
        return [
            f"prompt {comparison.prompt} parts already: it had {n_tokens} tokens of another digest. "
            "A chat template may write today's date; a response that was continued may be gone"
        ]
    parting = comparison.parting
    assert parting is not None, "without a difference it is the same"
    return [f"choice {parting.choice} parts at token {parting.token}", *_texts(parting, text_of)]


def _texts(parting: Parting, text_of: Callable[[Sequence[int]], str]) -> list[str]:
    start, end = max(0, parting.token - _N_BEFORE), parting.token + _N_AFTER
    return [
        f"  {name} {text_of(tokens[start:end])!r}" if tokens[start:end] else f"  {name} (nothing)"
        for name, tokens in (("then:", parting.then), ("now: ", parting.now))
    ]
