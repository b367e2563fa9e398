"""Advice in sentences: what each cause is, and what to change in the program that sends the prompts."""

from __future__ import annotations

from collections.abc import Mapping

from ggufd.chat.advice.causes import Cause

SENTENCES: Mapping[Cause, str] = {
    Cause.BILLING_HEADER: (
        "Claude Code writes a billing header with new values at the top of each system prompt. Switch the repair "
        "'billing_header' on again (cache_repairs), or set CLAUDE_CODE_ATTRIBUTION_HEADER to 0 in the 'env' of Claude "
        "Code's settings.json."
    ),
    Cause.DATE_OR_TIME: (
        "A date or a time is in the prompt and changes from turn to turn. Write it behind the chat, or only as a date: "
        "in SillyTavern move {{time}}, {{date}}, {{isotime}} and {{idle_duration}} out of the system prompt and the "
        "character card into an Author's Note at depth 0; in Open WebUI take {{CURRENT_TIME}} and "
        "{{CURRENT_DATETIME}} out of the system prompt."
    ),
    Cause.RANDOM_TEXT: (
        "A number, an id or a line in the prompt is another one each turn. Take it out, or move it behind the chat: in "
        "SillyTavern {{random}} and {{roll}} near the top, a summary that is written anew for each turn, a line of "
        "changing values, or the swapped cards of a group chat (join them); elsewhere a request's id in the system "
        "prompt."
    ),
    Cause.TOOLS_ORDER: (
        "The same tools come in another order each turn. Send them in one order: sort them by name, or keep them in a "
        "list instead of a set."
    ),
    Cause.HISTORY_TRIMMED: (
        "The chat has outgrown the frontend's context size, so the oldest messages are dropped each turn and all "
        "behind them moves. Raise the context size in the frontend if the server's is larger, or let many messages go "
        "at once (summarize, or hide a range of messages). On the server --cache-reuse moves what was computed "
        "instead of computing it again, and --pre-roll computes ahead."
    ),
    Cause.INJECTED_BLOCK: (
        "A block of text is put in among the messages, and stands somewhere else, or is not there, the next turn. In "
        "SillyTavern: an Author's Note, character note or World Info entry that is inserted at a depth; a greater "
        "depth costs more. Insert it before the chat when it never changes, or at depth 0 and keep it short; set World "
        "Info entries to constant or sticky."
    ),
    Cause.EDITED_MESSAGE: (
        "Earlier messages are not what they were the turn before. When nobody edits them, something rewrites them: in "
        "SillyTavern regex scripts that also alter the prompt, translation, or macros in messages."
    ),
}
"""Advice by cause."""
