"""Messages between the server's process and the encoder process."""

from __future__ import annotations

from dataclasses import dataclass

from ggufd.llama.params import ProjectorParams

Layout = tuple[tuple[int, ...] | int, ...]
"""Parts of an image: tokens, and numbers of rows."""


@dataclass(frozen=True, slots=True)
class EncoderParams:
    """Parameters of the encoder process: the file whose vocabulary it reads, and the projector.

    `niceness` is how far it gives way to other processes on the CPU, 0 to 19. `cpus` are those to compute on; empty is
    all. `temporary` is a folder that it deletes
    when the server has been killed; "" is none.
    """

    model_path: str
    projector: ProjectorParams
    niceness: int = 0
    cpus: frozenset[int] = frozenset()
    temporary: str = ""


@dataclass(frozen=True, slots=True)
class Measure:
    """Question for the parts of images of one size."""

    job_id: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Encode:
    """Order to encode an image, RGB of 8 bits; the rows of each of its tiles go into the file at its place in `paths`.

    Jobs are done in order.
    """

    job_id: int
    width: int
    height: int
    data: bytes
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cancel:
    """Order to stop a job, which waits or is worked on. It is answered nevertheless."""

    job_id: int


@dataclass(frozen=True, slots=True)
class EncoderStarted:
    """First message: jobs are done from now on."""


@dataclass(frozen=True, slots=True)
class EncoderStartFailed:
    """First and last message: this projector cannot be used."""

    message: str


@dataclass(frozen=True, slots=True)
class Measured:
    """Answer to `Measure`."""

    job_id: int
    layout: Layout


@dataclass(frozen=True, slots=True)
class Encoded:
    """Answer to `Encode`: the files are there. `seconds` is how long it took."""

    job_id: int
    layout: Layout
    seconds: float


@dataclass(frozen=True, slots=True)
class JobFailed:
    """Answer to any job that could not be done, or was stopped; the code is one of `errors`."""

    job_id: int
    code: str
    message: str


EncoderReply = EncoderStarted | EncoderStartFailed | Measured | Encoded | JobFailed
EncoderOrder = Measure | Encode | Cancel
