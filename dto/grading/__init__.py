"""Is this answer right? Numbers and text at once, algebra by math-verify, programs by tests."""

from dto.grading.grader import Grader
from dto.protocols import Graded

__all__ = ["Graded", "Grader"]
