"""How long a step will take, learned from the steps that ran."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Vector = list[float]

PRIOR = (2.0, 20.0, 4.0)
"""Guess before the first step: fixed ms, ms per 1,000 tokens, ms per 1,000 x 1,000 tokens of one picture."""

_PRIOR_WEIGHT = 1e-4
_DECAY = 0.98
"""Weight of the past at each new step: the last 50 or so count."""

_OUTLIER = 4.0
"""A step that took more than so many times its prediction counts as that much."""

_EAGER = 16
"""First steps, after each of which the model is fitted and which may be of any length; later every so many steps."""


class CostModel:
    """ms(step) = fixed + linear * tokens + quadratic * sum(tokens of a picture squared).

    Linear layers grow with the tokens, attention with their square inside each picture, launches not at all. The
    three numbers come from least squares on relative errors over roughly the last 50 steps, held non-negative, and
    pulled weakly to the prior in directions that the load never tried.
    """

    def __init__(self, prior: tuple[float, float, float] = PRIOR) -> None:
        self._prior = prior
        self._theta: Vector = list(prior)
        self._normal = [[0.0] * 3 for _ in range(3)]
        self._target: Vector = [0.0] * 3
        self.observations = 0

    @property
    def fixed_ms(self) -> float:
        return self._theta[0]

    def row_ms(self, tokens: int) -> float:
        """What one more picture of so many joint tokens adds to a step."""
        scaled = tokens * 1e-3
        return scaled * (self._theta[1] + self._theta[2] * scaled)

    def predict(self, lengths: Iterable[int]) -> float:
        """Milliseconds of a step over pictures of these joint token counts."""
        return self.fixed_ms + sum(self.row_ms(tokens) for tokens in lengths)

    def observe(self, lengths: Sequence[int], ms: float, computed: Sequence[float] | None = None) -> None:
        """Learn from a step that took `ms`. An outlier (page faults, a paused process) is cut off.

        Args: computed: share of the model's blocks that each picture ran, below 1 if it skipped the rest. A step in
            which no picture ran all blocks is left out: most of its time is none of the three terms.
        """
        if ms <= 0 or (computed is not None and max(computed) < 1):
            return
        shares = computed or (1.0,) * len(lengths)
        tokens = sum(share * n for share, n in zip(shares, lengths, strict=True))
        squares = sum(share * n * n for share, n in zip(shares, lengths, strict=True))
        expected = self.fixed_ms + self._theta[1] * tokens * 1e-3 + self._theta[2] * squares * 1e-6
        if self.observations >= _EAGER:
            ms = min(ms, _OUTLIER * expected)
        features = (1.0, tokens * 1e-3, squares * 1e-6)
        x = [value / ms for value in features]
        for i in range(3):
            self._target[i] = _DECAY * self._target[i] + x[i]
            for j in range(3):
                self._normal[i][j] = _DECAY * self._normal[i][j] + x[i] * x[j]
        self.observations += 1
        if self.observations <= _EAGER or self.observations % _EAGER == 0:
            self._fit()

    def _fit(self) -> None:
        """Solve with every coefficient free; those that come out negative are held at zero."""
        free = [0, 1, 2]
        while free:
            matrix = [[self._normal[i][j] for j in free] for i in free]
            target = [self._target[i] for i in free]
            for k, i in enumerate(free):
                pull = _PRIOR_WEIGHT / self._prior[i] ** 2
                matrix[k][k] += pull
                target[k] += pull * self._prior[i]
            solution = _solve(matrix, target)
            if min(solution) >= 0:
                break
            free.pop(solution.index(min(solution)))
        self._theta = [0.0, 0.0, 0.0]
        for k, i in enumerate(free):
            self._theta[i] = solution[k]


def _solve(matrix: list[Vector], target: Vector) -> Vector:
    """Gaussian elimination; the matrix is symmetric and positive definite, so no pivoting is needed."""
    size = len(target)
    rows = [[*row, value] for row, value in zip(matrix, target, strict=True)]
    for i in range(size):
        for j in range(i + 1, size):
            factor = rows[j][i] / rows[i][i]
            rows[j] = [b - factor * a for a, b in zip(rows[i], rows[j], strict=True)]
    solution = [0.0] * size
    for i in reversed(range(size)):
        known = sum(rows[i][j] * solution[j] for j in range(i + 1, size))
        solution[i] = (rows[i][size] - known) / rows[i][i]
    return solution
