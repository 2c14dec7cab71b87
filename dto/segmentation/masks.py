r"""Where words are not the model's own thinking: LaTeX, code and quotations.

A dollar sign is also money, so inline math follows Pandoc's rule: no space after the opening sign,
none before the closing one, and no digit after that. What is never closed hides nothing.
"""

from __future__ import annotations

import re
from bisect import bisect_right

from dto.records import Span

# Each alternative is bounded in length, so that a stray opening sign costs a bounded scan.
_HIDDEN = re.compile(
    r"""
      ^[ \t]*```[\s\S]{0,20000}?^[ \t]*```        # code fence
    | `[^`\n]{1,400}`                             # inline code
    | \\\[[\s\S]{0,4000}?\\\]                     # display math
    | \\\((?:(?!\n[ \t]*\n)[\s\S]){0,1000}?\\\)   # inline math
    | \$\$[\s\S]{0,4000}?\$\$
    | (?<![\\$])\$(?![\s$])(?:[^$\n\\]|\\.){0,400}(?<!\s)\$(?![\d$])
    | \\begin\{(\w+\*?)\}[\s\S]{0,4000}?\\end\{\1\}
    | (?<!\w)"(?=\S)(?:[^"\n]|\n(?![ \t]*\n)){0,1500}"
    | “(?:[^”\n]|\n(?![ \t]*\n)){0,1500}”
    | 「[^」\n]{0,1500}」
    | 『[^』\n]{0,1500}』
    | ^[ \t]*>[^\n]*                              # block quotation
    """,
    re.MULTILINE | re.VERBOSE,
)


class Masks:
    """The hidden spans of one text."""

    def __init__(self, text: str) -> None:
        """Find them, in one pass: a sign inside a hidden span opens nothing."""
        self.spans = [Span(*match.span()) for match in _HIDDEN.finditer(text)]
        self._starts = [span.start for span in self.spans]

    def hide(self, position: int) -> bool:
        """Whether the character at `position` stands inside a hidden span."""
        index = bisect_right(self._starts, position) - 1
        return index >= 0 and position < self.spans[index].end
