"""Is this answer right? Numbers and text at once, algebra by math-verify, programs by tests."""

from dto.grading.grader import Graded, Grader

__all__ = ["Graded", "Grader"]
