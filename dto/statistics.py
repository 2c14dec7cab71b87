"""Estimates with intervals that account for several samples of one problem.

Samples of a problem share its difficulty, so problems are the independent units: standard errors
are clustered by problem (2411.00640, section 2.2), comparisons are paired by problem (section 4.1),
and the bootstrap resamples problems. All intervals are two-sided.

Arrays have one entry per sample: `values_N` holds the scores, `problems_N` the problems. The caller
leaves out rows graded `failed`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb, isnan, nan, sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

from dto.sequential import Interval, check_counts


def wilson(successes: float, trials: float, confidence: float = 0.95) -> Interval:
    """Wilson's score interval (1927), also for fractional counts. Without trials: [0, 1]."""
    check_counts(successes, trials)
    if trials == 0:
        return Interval(0.0, 1.0)
    z = normal_quantile(confidence)
    p = successes / trials
    centre = p + z * z / (2 * trials)
    spread = z * sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return Interval(max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale))


def normal_quantile(confidence: float) -> float:
    """The two-sided quantile of the standard normal distribution: 1.96 for 0.95."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


Scores = Sequence[float] | Sequence[bool] | npt.NDArray[np.float64]
Problems = Sequence[str]

_RESAMPLES = 4000
SEED = 20_250_521  # seed of the bootstrap: intervals in tables must not change


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval, and the numbers of samples and problems; nan without samples.

    It formats itself with the format specification of its value (:func:`shown`): `f"{accuracy:%}"`
    gives `73.8 (70.4–76.9)`, `f"{gain:+%}"` gives `+1.8 (-2.5…+6.0)`, `f"{tokens}"` gives
    `1,204.5 (1,100.2–1,308.8)`. An ellipsis separates the ends if the specification has a sign, or
    ends in an ellipsis: `f"{kappa:.2f…}"`.
    """

    value: float
    low: float
    high: float
    samples: int
    problems: int

    def __format__(self, spec: str) -> str:
        apart = "…" if spec.startswith("+") or spec.endswith("…") else "–"
        spec = spec.removesuffix("…")
        value = shown(self.value, spec)
        if isnan(self.value) or isnan(self.low):
            return value
        return f"{value} ({shown(self.low, spec)}{apart}{shown(self.high, spec)})"


NOTHING = Estimate(nan, nan, nan, 0, 0)


def shown(value: float | None, spec: str = "") -> str:
    """Format a number for a table; None and nan become a dash.

    `spec` is a Python format specification, by default `,.1f`. A specification with `%` formats a
    share in percent without the percent sign, to one digit by default: `%`, `+%`, `.0%`.
    """
    if value is None or isnan(value):
        return "–"
    if spec.endswith("%"):
        digits = "" if "." in spec else ".1"
        return format(100 * value, f"{spec[:-1]}{digits}f")
    return format(value, spec or ",.1f")


def standard_error(values_N: Scores, problems_N: Problems) -> float:
    """Standard error of the mean of all samples, clustered by problem; nan for a single problem.

    The sum over problems of the squared sum of each problem's residuals (2411.00640, equation 4),
    times P / (P - 1), since the mean is estimated from the same P problems.
    """
    values, clusters_N, count = _grouped(values_N, problems_N)
    if count < 2:
        return nan
    residual_P = np.bincount(clusters_N, weights=values - values.mean(), minlength=count)
    return float(sqrt((residual_P**2).sum() * count / (count - 1)) / len(values))


def mean(values_N: Scores, problems_N: Problems, confidence: float = 0.95) -> Estimate:
    """The mean of all samples, with clustered standard error and Student's t over the problems.

    The interval of a single problem is nan, since it says nothing about other problems.
    """
    values, _, count = _grouped(values_N, problems_N)
    if not count:
        return NOTHING
    value = float(values.mean())
    half = _t_quantile(confidence, count - 1) * standard_error(values_N, problems_N)
    return Estimate(value, value - half, value + half, len(values), count)


def proportion(correct_N: Scores, problems_N: Problems, confidence: float = 0.95) -> Estimate:
    """The share of correct samples: accuracy as avg@n, with n samples per problem.

    Wilson's interval on the effective sample size p (1 - p) / se², with se clustered by problem.
    Unlike a normal interval it stays within [0, 1], and it has a width even if all samples are
    right (each problem then counts once).
    """
    values, _, count = _grouped(correct_N, problems_N)
    if not count:
        return NOTHING
    p = float(values.mean())
    error = standard_error(correct_N, problems_N)
    effective = float(count)
    if error > 0:
        effective = min(float(len(values)), p * (1 - p) / error**2)
    # With few problems, this scaling turns Wilson's z into Student's t.
    freedom = max(1, count - 1)
    effective *= (normal_quantile(confidence) / _t_quantile(confidence, freedom)) ** 2
    low, high = wilson(p * effective, effective, confidence)
    return Estimate(p, min(low, p), max(high, p), len(values), count)


def paired_difference(
    values_A: Scores,
    problems_A: Problems,
    values_B: Scores,
    problems_B: Problems,
    confidence: float = 0.95,
) -> Estimate:
    """Mean of A minus mean of B over the shared problems, paired by problem.

    Each problem counts once, with the mean of its samples; the numbers of samples may differ.
    """
    means_A, means_B = _problem_means(values_A, problems_A), _problem_means(values_B, problems_B)
    shared = sorted(means_A.keys() & means_B.keys())
    differences_P = [means_A[problem] - means_B[problem] for problem in shared]
    estimate = mean(differences_P, shared, confidence)
    samples = sum(problem in means_B for problem in problems_A)
    samples += sum(problem in means_A for problem in problems_B)
    return Estimate(estimate.value, estimate.low, estimate.high, samples, len(shared))


def pass_at_k(
    correct_N: Scores, problems_N: Problems, k: int, confidence: float = 0.95
) -> Estimate:
    """The probability that one of k samples is right: mean of 1 - C(n - c, k) / C(n, k).

    This is the unbiased estimator of 2107.03374, section 2.1. Problems with fewer than k samples
    are left out, also of the counts. The interval is cut to [0, 1].
    """
    if k < 1:
        raise ValueError(f"pass@{k}: k must be at least 1")
    values, clusters_N, count = _grouped(correct_N, problems_N)
    samples_P = np.bincount(clusters_N, minlength=count)
    correct_P = np.bincount(clusters_N, weights=values, minlength=count)
    pairs = [(int(n), round(c)) for n, c in zip(samples_P, correct_P, strict=True) if n >= k]
    scores_P = [1 - comb(n - c, k) / comb(n, k) for n, c in pairs]
    estimate = mean(scores_P, [str(i) for i in range(len(scores_P))], confidence)
    return Estimate(
        estimate.value,
        max(0.0, estimate.low) if pairs else nan,
        min(1.0, estimate.high) if pairs else nan,
        sum(n for n, _ in pairs),
        len(pairs),
    )


def efficiency(
    correct_A: Scores,
    tokens_A: Scores,
    problems_A: Problems,
    correct_B: Scores,
    tokens_B: Scores,
    problems_B: Problems,
    confidence: float = 0.95,
) -> Estimate:
    """Efficiency eta = (accuracy_A / accuracy_B) / (tokens_A / tokens_B); the base B has eta = 1.

    The interval is the percentile interval of a bootstrap with a fixed seed that resamples the
    shared problems, both sides together. 2505.21765 reports an "efficiency" without a definition;
    this one is ours.
    """
    shared = sorted(set(problems_A) & set(problems_B))
    if not shared:
        return NOTHING
    index = {problem: i for i, problem in enumerate(shared)}
    sums_PX = np.stack(
        [
            _sums(values, problems, index)
            for values, problems in (
                (correct_A, problems_A),
                (tokens_A, problems_A),
                (correct_B, problems_B),
                (tokens_B, problems_B),
            )
        ],
        axis=1,
    )
    # The numbers of samples cancel: accuracy / tokens is a ratio of sums over the same samples.
    low, high = bootstrap(sums_PX, _efficiency, confidence)
    samples = sum(p in index for p in problems_A) + sum(p in index for p in problems_B)
    return Estimate(float(_efficiency(sums_PX.sum(0)[None])[0]), low, high, samples, len(shared))


def ratio(sums_P2: npt.NDArray[np.float64], samples: int = 0) -> Estimate:
    """The ratio of two sums over problems, such as tokens with and without an exit.

    Column 0 over column 1, with one row per problem and the percentile interval of a bootstrap over
    the rows. nan without rows.
    """
    if not len(sums_P2):
        return NOTHING
    low, high = bootstrap(sums_P2, lambda totals: totals[:, 0] / totals[:, 1])
    upper, lower = sums_P2.sum(0)
    return Estimate(float(upper / lower) if lower else nan, low, high, samples, len(sums_P2))


def cohen_kappa(
    first_N: Sequence[str], second_N: Sequence[str], problems_N: Problems, confidence: float = 0.95
) -> Estimate:
    """Cohen's kappa (1960): agreement of two raters beyond chance; 1 is perfect, 0 is chance.

    Each rater names one category per item. Kappa is (p - e) / (1 - e), with p the share of items on
    which they agree and e that share if they were independent. It is nan if both use the same
    single category. The interval is the percentile interval of a bootstrap over problems, nan for a
    single problem.
    """
    if not len(first_N) == len(second_N) == len(problems_N):
        raise ValueError(f"{len(first_N)}, {len(second_N)} ratings of {len(problems_N)} items")
    index = {name: i for i, name in enumerate(sorted({*first_N, *second_N}))}
    problems = {problem: i for i, problem in enumerate(dict.fromkeys(problems_N))}
    joint_PCC = np.zeros((len(problems), len(index), len(index)))
    rows = [problems[problem] for problem in problems_N]
    np.add.at(joint_PCC, (rows, [index[a] for a in first_N], [index[b] for b in second_N]), 1.0)
    cells_PX = joint_PCC.reshape(len(problems), len(index) ** 2)
    low, high = Interval(nan, nan)
    if len(problems) > 1:
        low, high = bootstrap(cells_PX, _kappa, confidence)
    value = kappa(joint_PCC.sum(0))
    return Estimate(value, low, high, len(first_N), len(problems))


def kappa(joint_CC: npt.ArrayLike) -> float:
    """Cohen's kappa of a table of counts: rows for one rater's categories, columns for the other's.

    nan without items, and if both use the same single category.
    """
    return float(_kappa(np.asarray(joint_CC, dtype=np.float64).reshape(1, -1))[0])


def _kappa(cells_RX: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    categories = round(sqrt(cells_RX.shape[1]))
    joint_RCC = cells_RX.reshape(len(cells_RX), categories, categories)
    total_R = cells_RX.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        agreed_R = np.trace(joint_RCC, axis1=1, axis2=2) / total_R
        chance_R = (joint_RCC.sum(1) * joint_RCC.sum(2)).sum(1) / total_R**2
        kappa_R: npt.NDArray[np.float64] = (agreed_R - chance_R) / (1 - chance_R)
    return kappa_R


def bootstrap(
    sums_PX: npt.NDArray[np.float64],
    statistic: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]],
    confidence: float = 0.95,
) -> Interval:
    """Percentile interval of a statistic of column sums, under resampling of problems.

    Args:
        sums_PX: for each of P problems, the sums of X quantities over its samples.
        statistic: maps the totals (R, X) of R resamples to R values; infinite ones are left out.
        confidence: the confidence of the interval.
    """
    problems = len(sums_PX)
    rng = np.random.default_rng(SEED)
    uniform = np.full(problems, 1 / problems)
    values: list[npt.NDArray[np.float64]] = []
    for _ in range(0, _RESAMPLES, 500):  # in parts, since R x P counts could fill the memory
        draws_RP = rng.multinomial(problems, uniform, size=500)
        values.append(statistic(draws_RP @ sums_PX))
    values_R = np.concatenate(values)
    values_R = values_R[np.isfinite(values_R)]
    if not len(values_R):
        return Interval(nan, nan)
    tail = (1 - confidence) / 2
    low, high = np.quantile(values_R, [tail, 1 - tail])
    return Interval(float(low), float(high))


def _efficiency(totals_RX: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    correct_A, tokens_A, correct_B, tokens_B = totals_RX.T
    with np.errstate(divide="ignore", invalid="ignore"):
        eta: npt.NDArray[np.float64] = (correct_A / tokens_A) / (correct_B / tokens_B)
    return eta


def _grouped(
    values_N: Scores, problems_N: Problems
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp], int]:
    """The values as floats, the number of each value's problem, and the count of problems."""
    values = np.asarray(values_N, dtype=np.float64)
    if len(values) != len(problems_N):
        raise ValueError(
            f"{len(values)} values for {len(problems_N)} problems: they must be as many"
        )
    index: dict[str, int] = {}
    clusters = [index.setdefault(problem, len(index)) for problem in problems_N]
    return values, np.array(clusters, dtype=np.intp), len(index)


def _sums(values_N: Scores, problems_N: Problems, index: dict[str, int]) -> npt.NDArray[np.float64]:
    sums_P = np.zeros(len(index))
    for value, problem in zip(values_N, problems_N, strict=True):
        if problem in index:
            sums_P[index[problem]] += float(value)
    return sums_P


def _problem_means(values_N: Scores, problems_N: Problems) -> dict[str, float]:
    values, clusters_N, count = _grouped(values_N, problems_N)
    sums_P = np.bincount(clusters_N, weights=values, minlength=count)
    samples_P = np.bincount(clusters_N, minlength=count)
    return dict(zip(dict.fromkeys(problems_N), (sums_P / samples_P).tolist(), strict=True))


def widening(clusters: int, confidence: float = 0.95) -> float:
    """The factor by which a bootstrap interval of a mean is too narrow for few clusters (>= 2).

    It replaces the normal quantile by Student's t, and corrects the variance by P / (P - 1).
    """
    student = _t_quantile(confidence, clusters - 1)
    return student / normal_quantile(confidence) * sqrt(clusters / (clusters - 1))


def _t_quantile(confidence: float, freedom: int) -> float:
    """Student's two-sided quantile; nan for less than one degree of freedom."""
    return nan if freedom < 1 else float(special.stdtrit(freedom, (1 + confidence) / 2))


_FLIPS = 20_000  # enough for p-values that survive a correction for 100 comparisons


class Difference(NamedTuple):
    """A mean difference with its interval and a two-sided p-value; nan without problems."""

    value: float
    low: float
    high: float
    p: float


def bootstrap_differences(
    differences_PK: npt.NDArray[np.float64], confidence: float = 0.95
) -> list[Difference]:
    """The mean of each column, with a percentile interval under resampling of its P problems.

    Column k holds, for each problem, one method's mean over its samples minus another's, so this is
    a paired, clustered bootstrap. p is twice the smaller share of resampled means on either side of
    0. The observed mean is included, so p is never 0. p is also at least 2 / 2^P, the smallest
    value that the signs of P problems can show. For a column of zeros p is 1; a column with a nan
    gives nan.
    """
    problems, columns = differences_PK.shape
    if not problems:
        return [Difference(nan, nan, nan, nan)] * columns
    rng = np.random.default_rng(SEED)
    uniform = np.full(problems, 1 / problems)
    parts = [
        rng.multinomial(problems, uniform, size=500) @ differences_PK / problems
        for _ in range(0, _FLIPS, 500)
    ]
    means_RK = np.concatenate(parts)
    below_K = ((means_RK <= 0).sum(0) + 1) / (_FLIPS + 1)
    above_K = ((means_RK >= 0).sum(0) + 1) / (_FLIPS + 1)
    p_K = np.minimum(1.0, np.maximum(2 * np.minimum(below_K, above_K), 2.0 ** (1 - problems)))
    tail = (1 - confidence) / 2
    ends_2K = np.quantile(means_RK, [tail, 1 - tail], axis=0)
    values_K = differences_PK.mean(0)
    p_K[np.isnan(values_K)] = nan
    return [Difference(*map(float, row)) for row in zip(values_K, *ends_2K, p_K, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm 1979), in the given order.

    If all adjusted values below alpha are called differences, the probability of any error is at
    most alpha, whatever their dependence. A nan (no comparison was possible) stays nan and does not
    count.
    """
    order = sorted(
        (i for i, p in enumerate(p_values) if not isnan(p)), key=lambda i: float(p_values[i])
    )
    adjusted = [nan] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
