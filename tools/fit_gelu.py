"""Fit the polynomials of macros/engines/postgres/fast/gelu.sql, and print them.

    .venv/bin/python -m tools.fit_gelu

GELU is x (1/2 + e(x)) with an odd e: erf(x / sqrt(2)) / 2 in its exact form,
tanh(sqrt(2/pi) (x + 0.044715 x^3)) / 2 in the other. So is SiLU, with tanh(x / 2) / 2.
e is fitted by

    t = scale x;  t = t (c - t^2), once for each cubic;  e = t p(k - t^2)

from t (3/2 - t^2), which brings numbers nearer to 1 / sqrt(2) or -1 / sqrt(2), by
least squares (Levenberg and Marquardt). k is the largest t^2 that the last cubic gives:
where e is flat, p is about its last number, and little is rounded. Weights grow where
the error is large, until it is about the same everywhere (Lawson 1961). The best of
some random starts counts, after a minute.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from dbt_nn.cli import command

POINTS = 600
STARTS = 40
WEIGHTINGS = 12
STEPS = 60


@dataclass(frozen=True)
class Gelu:
    """What is fitted: e up to a bound, by how many cubics and which degree of p."""

    name: str
    e: Callable[[float], float]
    bound: float
    cubics: int
    degree: int


GELUS = (
    Gelu("gelu", lambda x: math.erf(x / math.sqrt(2)) / 2, 31, 4, 3),
    Gelu(
        "gelu_new",
        lambda x: math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)) / 2,
        13, 4, 5,
    ),
    # 3e-7 off at best: its ends are less steep than any of the cubics'
    Gelu("silu", lambda x: math.tanh(x / 2) / 2, 17, 4, 7),
)  # fmt: skip


def cubics_of(gelu: Gelu, numbers: np.ndarray, x: np.ndarray) -> np.ndarray:
    t = numbers[0] * x
    for c in numbers[1 : gelu.cubics + 1]:
        t = t * (c - t * t)
    return t


def bound_of(gelu: Gelu, numbers: np.ndarray) -> float:
    """k: t^2 at the maximum of t (c - t^2), which is at t^2 = c / 3."""
    return 4 * (numbers[gelu.cubics] / 3) ** 3


def evaluate(gelu: Gelu, numbers: np.ndarray, x: np.ndarray) -> np.ndarray:
    """e(x) from the scale, the cubics' numbers and p's, its highest first."""
    t = cubics_of(gelu, numbers, x)
    w = bound_of(gelu, numbers) - t * t
    return t * np.polyval(numbers[gelu.cubics + 1 :], w)


def weighted_errors(
    gelu: Gelu, x: np.ndarray, y: np.ndarray, weights: np.ndarray, numbers: np.ndarray
) -> np.ndarray:
    return (evaluate(gelu, numbers, x) - y) * weights


def begin(gelu: Gelu, x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """Like cubics, a little disturbed, and the p that fits them best."""
    random = np.random.default_rng(seed)
    numbers = np.array([math.sqrt(0.5) / gelu.bound] + [1.5] * gelu.cubics)
    numbers *= 1 + 0.03 * random.standard_normal(len(numbers))
    t = cubics_of(gelu, numbers, x)
    powers = np.vander(bound_of(gelu, numbers) - t * t, gelu.degree + 1)
    p = np.linalg.lstsq(t[:, None] * powers, y, rcond=None)[0]
    return np.concatenate([numbers, p])


def improve(
    residual: Callable[[np.ndarray], np.ndarray], numbers: np.ndarray, damping: float
) -> tuple[np.ndarray, float]:
    """Least squares by steps of Levenberg and Marquardt."""
    r = residual(numbers)
    for _ in range(STEPS):
        steps = 1e-6 * np.maximum(1, np.abs(numbers))
        slopes = np.stack(
            [
                (residual(numbers + h) - residual(numbers - h)) / (2 * h.sum())
                for h in np.diag(steps)
            ],
            axis=1,
        )
        scale = np.linalg.norm(slopes, axis=0)
        gain = 0.0
        while damping < 1e6 and not gain:
            damped = np.vstack(
                [slopes / scale, math.sqrt(damping) * np.eye(len(scale))]
            )
            wanted = np.concatenate([-r, np.zeros(len(scale))])
            changed = numbers + np.linalg.lstsq(damped, wanted, rcond=None)[0] / scale
            new = residual(changed)
            if new @ new < r @ r:
                gain = 1 - (new @ new) / (r @ r)
                numbers, r, damping = changed, new, max(damping / 5, 1e-16)
            else:
                damping *= 5
        if gain < 1e-6:
            break
    return numbers, min(damping, 1.0)


def fit(gelu: Gelu, seed: int) -> tuple[float, np.ndarray]:
    """The largest error found from one start, and the numbers that have it."""
    angles = (np.arange(POINTS) + 0.5) / POINTS * math.pi / 2
    x = gelu.bound * np.sin(angles)  # denser at the bound
    y = np.array([gelu.e(value) for value in x])
    numbers = begin(gelu, x, y, seed)
    weights = np.ones(POINTS)
    damping = 1e-3
    best = (math.inf, numbers)
    for _ in range(WEIGHTINGS):
        residual = partial(weighted_errors, gelu, x, y, weights)
        numbers, damping = improve(residual, numbers, damping)
        errors = np.abs(evaluate(gelu, numbers, x) - y)
        best = min(best, (float(errors.max()), numbers), key=lambda found: found[0])
        weights *= (1e-3 + errors / errors.max()) ** 0.4
        weights /= weights.mean()
    return best


@command(__doc__)
def main() -> None:
    """Carry out the command line."""
    for gelu in GELUS:
        with np.errstate(over="ignore", invalid="ignore"):
            fits = [fit(gelu, seed) for seed in range(STARTS)]
        error, numbers = min(fits, key=lambda found: found[0])
        print(f"{gelu.name} up to {gelu.bound}: e is at most {error:.1e} off")
        print("  scale", f"{numbers[0]:.9g}")
        print("  cubics", ", ".join(f"{c:.9g}" for c in numbers[1 : gelu.cubics + 1]))
        print("  k", f"{bound_of(gelu, numbers):.9g}")
        print("  p", ", ".join(f"{c:.9g}" for c in numbers[gelu.cubics + 1 :]))


if __name__ == "__main__":
    main()
