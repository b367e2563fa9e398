"""Cost model of a step: seconds as a sum over what its shape counts, learned from the steps that are served.

    seconds = pass_s * passes + row_s * rows + attended_s * rows x tokens before + the same for rows in tiles

The weights are fitted by least squares of the relative error, none below zero, over the classes of shapes that were
seen: a server that only decodes for an hour keeps what it knows of prompts. Where classes are too few to tell the
weights apart, a ridge keeps these near what was known before, as a whole made slower or faster. Of a class that was
seen lately the prediction leans to its own measured time, the more the oftener: kernels have steps that no sum has.

Other programs on the machine make steps longer, never shorter; so does a model whose weights are still on disk. So a
time counts for at most half more than was expected, a shorter one moves the average more than a longer one, and classes
that take much longer than the others tell count for little in the fit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggufd.engine.costs.step_shape import StepShape

_Floats = NDArray[np.float64]

_MAX_CLASSES = 96
_FIT_STEPS = 64
"""So often the weights are fitted, and after 1, 2, 4, 8 ... steps: it takes some tenths of a millisecond."""

_LATELY = 2000
"""Steps within which a class counts as seen lately."""

_FADING = 500
"""Steps after which a class counts half in the fit."""

_LONGER, _SHORTER = 0.15, 0.4
"""Smoothing of times that are longer and shorter than the average."""

_MOST = 1.5
"""A time counts for at most so many times what was expected."""

_DOUBTFUL = 3.0
"""A class that takes so many times what the others tell counts for less."""

_DOUBTED = 4
"""So many steps of a class count as much as the sum that was fitted to all."""

_RIDGE = 0.003
"""A weight that is twice what it was before costs as much as an error of 5 % in all steps."""

_RIDGE_STEPS = 32
"""After so many steps the ridge becomes less, as their number grows."""

_LEAST_RIDGE = 1e-5

_LEAST_S = 1e-7
"""Shorter steps are none that were computed."""

_LEAST = 0.1
_USUAL = StepShape(1, 4, 2000)
"""Each weight that was known counts at least for so much of its first proportion, by the time of a usual step."""


class Weights(NamedTuple):
    """Seconds of one pass over the model's weights, of a row, and of a token before a row, in tiles and without."""

    pass_s: float
    row_s: float
    attended_s: float
    attended_tiled_s: float

    def seconds(self, shape: StepShape) -> float:
        return sum(weight * count for weight, count in zip(self, shape, strict=True))

    def scaled(self, factor: float) -> Weights:
        return Weights(*(factor * weight for weight in self))


FIRST = Weights(4.0, 1.0, 1 / 1500, 1 / 3000)
"""Proportions of the weights before anything was measured: of a small model on two cores."""


class _Class:
    """Shapes that are much alike: their mean and the moving average of their time."""

    def __init__(self, shape: StepShape, seconds: float, step: int) -> None:
        self.shape = shape
        self.seconds = seconds
        self.step = step
        self.n = 1

    def add(self, shape: StepShape, seconds: float, step: int) -> None:
        smoothing = _LONGER if seconds > self.seconds else _SHORTER
        self.shape = StepShape(*(old + smoothing * (new - old) for old, new in zip(self.shape, shape, strict=True)))
        self.seconds += smoothing * (seconds - self.seconds)
        self.step = step
        self.n = min(self.n + 1, 4 * _DOUBTED)


class CostModel:
    """Cost model that begins with the weights that are `known`, if any."""

    def __init__(self, known: Weights | None = None) -> None:
        self._before = FIRST if known is None else _without_zeros(known)
        self.weights = known
        self._classes: dict[tuple[int, ...], _Class] = {}
        self.n_steps = 0

    def seconds(self, shape: StepShape) -> float:
        """Expected seconds of a step; 0 while nothing is known."""
        if self.weights is None:
            return 0.0
        expected_s = self.weights.seconds(shape)
        like = self._classes.get(_class_of(shape))
        if like is None or self.n_steps - like.step > _LATELY:
            return expected_s
        fitted_s = self.weights.seconds(like.shape)
        ratio = like.seconds / fitted_s if fitted_s > 0 else 1.0
        return expected_s * (_DOUBTED + like.n * ratio) / (_DOUBTED + like.n)

    def record(self, shape: StepShape, seconds: float) -> float:
        """Learn from a step that took `seconds`; the seconds that were expected of it, 0 where nothing was known."""
        expected_s = self.seconds(shape)
        if seconds < _LEAST_S or shape.n_rows <= 0:
            return expected_s
        if expected_s > 0:
            seconds = min(seconds, _MOST * expected_s)
        self.n_steps += 1
        self._add(shape, seconds)
        if self.n_steps % _FIT_STEPS == 0 or self.n_steps.bit_count() == 1:
            self._fit()
        return expected_s

    def _add(self, shape: StepShape, seconds: float) -> None:
        """Count a step to its class."""
        key = _class_of(shape)
        if (like := self._classes.get(key)) is not None:
            like.add(shape, seconds, self.n_steps)
            return
        self._classes[key] = _Class(shape, seconds, self.n_steps)
        if len(self._classes) > _MAX_CLASSES:
            del self._classes[min(self._classes, key=lambda one: self._classes[one].step)]

    def _fit(self) -> None:
        classes = list(self._classes.values())
        times = np.array([one.seconds for one in classes])
        ages = self.n_steps - np.array([one.step for one in classes])
        n_seen = np.array([one.n for one in classes])
        shares = (0.5 ** (ages / _FADING) + 1e-3) * n_seen / (n_seen + _DOUBTED)
        # In these units a perfect prediction is 1 for every class.
        counts = np.array([one.shape for one in classes]) / times[:, None]
        ridge = max(_LEAST_RIDGE, _RIDGE * min(1.0, _RIDGE_STEPS / self.n_steps))
        before = np.array(self._before) * _weighted_median(1 / (counts @ np.array(self._before)), shares)
        found = _least_squares(counts, shares, before, ridge)
        trust = np.minimum(1.0, _DOUBTFUL * counts @ found) ** 4
        found = _least_squares(counts, shares * trust, before, ridge)
        self.weights = Weights(*found.tolist())


def _without_zeros(known: Weights) -> Weights:
    """Weights each of which can become more again."""
    least = FIRST.scaled(_LEAST * known.seconds(_USUAL) / FIRST.seconds(_USUAL))
    return Weights(*map(max, known, least))


def _class_of(shape: StepShape) -> tuple[int, ...]:
    """Class of a shape: exact in its passes and in few rows, else in steps of a tenth; depth in steps of a half."""
    depth = (shape.n_attended + shape.n_attended_tiled) / max(1.0, shape.n_rows)
    n_rows = int(shape.n_rows) if shape.n_rows <= 16 else 16 + round(8 * math.log2(shape.n_rows / 16))
    return round(shape.n_passes), n_rows, round(2 * math.log2(1 + depth / 64)), int(shape.n_attended_tiled > 0)


def _weighted_median(values: _Floats, shares: _Floats) -> float:
    order = np.argsort(values)
    place = int(np.searchsorted(np.cumsum(shares[order]), shares.sum() / 2))
    return float(values[order[min(place, len(order) - 1)]])


def _least_squares(counts: _Floats, shares: _Floats, before: _Floats, ridge: float) -> _Floats:
    """Weights of at least zero for which `counts @ weights` is near 1, and each near what it was `before`."""
    counts = counts * before
    shares = shares / shares.sum()
    free = np.ones_like(before, np.bool_)
    factors = np.zeros_like(before)
    while free.any():
        part = counts[:, free]
        matrix = (part * shares[:, None]).T @ part + ridge * np.eye(part.shape[1])
        factors[:] = 0.0
        factors[free] = np.linalg.solve(matrix, part.T @ shares + ridge)
        if (factors >= 0).all():
            break
        free &= factors > factors.min()
    return factors * before
