"""Is this answer right? Extraction, an exact fast path, and math-verify in killable children."""

from dto.grading.grader import Graded, Grader

__all__ = ["Graded", "Grader"]
