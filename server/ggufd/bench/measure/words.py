"""Random text that no server has cached, of about a wanted number of tokens.

Words are drawn from a seed, common ones of English, so that a token is about a word in most vocabularies; what the
rate really is comes from the server (`Calibration`). Knows no scenario.
"""

from __future__ import annotations

import random

from ggufd.bench.measure.client import BenchError, Client

_TEXT = """
    the a and of to in that it was for on with as at by from this have but not they were her his she
    when there which one all would their we him been has more who will no out so said what up its
    about into than them can only other time new some could these two may first then do any like my now
    over such our man me even most made after also did many before must through years where much your way
    well down should because long each just those people how too little state good very make world still see
    own work men day get here old between both life being under three never know same last another while us
    might great go come since against right came take used himself few house use during without again place
    around however home small found thought went say part once high general upon school every does got
    united left number course war until always away something fact water though less public put think almost
    hand enough far took head yet better set told nothing night end why called eyes find going look asked
    later knew point next city business give group toward young let room side social given present order
    often early large children light city door letter garden winter river stone paper morning window road
    """
_WORDS = tuple(dict.fromkeys(_TEXT.split()))

_PROBE_WORDS = 400


class Words:
    """Generator of unseen text. The same seed and parts give the same text again.

    `per_word` is tokens in a word, with its share of punctuation.
    """

    def __init__(self, per_word: float, *parts: object) -> None:
        self.random = random.Random("/".join(str(part) for part in parts))
        self._per_word = per_word

    def text(self, tokens: int) -> str:
        """Sentences of about `tokens` tokens, at least one word."""
        return sentences(self.random, max(1, round(tokens / self._per_word)))


def sentences(source: random.Random, n_words: int) -> str:
    """`n_words` words in sentences of six to sixteen."""
    parts: list[str] = []
    while n_words > 0:
        length = min(n_words, source.randint(6, 16))
        sentence = " ".join(source.choices(_WORDS, k=length))
        parts.append(sentence[0].upper() + sentence[1:] + ".")
        n_words -= length
    return " ".join(parts)


async def calibrate(client: Client, seed: int) -> float:
    """Tokens in a word, asked of the server: `/tokenize` where there is one, else the usage of a short completion.

    Not of a stream: llama-cpp-python's example server counts only where it does not stream. Raises BenchError when
    the server counts neither way.
    """
    probe = sentences(random.Random(f"{seed}/calibration"), _PROBE_WORDS)
    counted = await count(client, probe)
    if counted is None:
        counted = await client.count_prompt(probe)
    if not counted:
        raise BenchError(f"{client.url} counts no tokens: neither POST /tokenize nor usage.prompt_tokens works")
    return counted / _PROBE_WORDS


async def tokens(client: Client, text: str) -> list[int] | None:
    """The text's tokens by `POST /tokenize`; None where the server has no such route."""
    try:
        found = (await client.post("/tokenize", {"content": text, "add_special": True})).get("tokens")
    except BenchError as error:
        if error.status is None:
            raise
        return None
    return found if isinstance(found, list) else None


async def count(client: Client, text: str) -> int | None:
    """The number of tokens of a text by `POST /tokenize`; None where the server has no such route."""
    found = await tokens(client, text)
    return None if found is None else len(found)
