r"""Near misses of gold answers: small changes that make another answer.

A grader that takes one of them for right is too lax. Each change is made in the gold answer's own
notation (`changes`), and kept only where `reading`, which shares nothing with the grader, shows
that it means something else: never the sign of 0, a point with two equal coordinates exchanged, a
change of a decimal by less than a ten thousandth, `5 m` as `500 cm`, or anything in notation that
it cannot read.

Not changed, because the grader's rules let it vary: a unit that is left out or added, the left side
of `y = 2x`, the name of the variable of an interval or of a function's argument, the base of a
numeral that is left out, the order of a list, the constant of an integral. Another name for the
variable of an equation or expression (`x = 5`, `y = 5`) does make another answer.
"""

from benchmarks.nearmiss.changes import KINDS, MOST, NearMiss, NearMissKind, near_misses

__all__ = ["KINDS", "MOST", "NearMiss", "NearMissKind", "near_misses"]
