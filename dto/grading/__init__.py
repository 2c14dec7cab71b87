"""Grade answers: numbers and text directly, algebra by math-verify, programs by their tests."""

from dto.grading.grader import Grader
from dto.protocols import Graded

__all__ = ["Graded", "Grader"]
