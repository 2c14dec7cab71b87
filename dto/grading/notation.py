r"""Normalise the notation of answers to plain LaTeX.

`clean` removes everything without meaning: `\left`, `\!`, sizes, fonts, colours, `$`, a full stop
at the end, degrees (except inside functions, where radians would be read), the ending of an
ordinal, full-width characters, redundant white space. Separators of thousands other than commas are
removed (`4,\! 250`, `1{,}000`, `1'000`); `dto.grading.quantity` reads the commas.

`typed` turns plain text into LaTeX: `pi/2`, `x**2`, `sqrt(3)/2`, `7*sin(pi*x/5)+1`, `x<=3`.
"""

from __future__ import annotations

import re
from functools import lru_cache

from dto.grading.quantity import no_unit

_CHARACTERS: dict[int, int | str] = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_CHARACTERS |= str.maketrans("−–‐\u00a0\u2009\u202f\u3000、【】′’´", "---    ,[]'''")
_CHARACTERS |= {
    ord(character): text
    for character, text in (
        ("π", r"\pi "), ("×", r"\times "), ("÷", r"\div "), ("⋅", r"\cdot "), ("≥", r"\geq "),
        ("≤", r"\leq "), ("⩾", r"\geq "), ("⩽", r"\leq "), ("≠", r"\neq "), ("±", r"\pm "),
        ("∓", r"\mp "), ("∅", r"\emptyset "), ("∞", r"\infty "), ("∪", r" \cup "),
        ("∩", r" \cap "), ("∈", r"\in "), ("∖", r"\setminus "), ("∣", r"\mid "), ("°", r"^\circ "),
        ("º", r"^\circ "), ("≈", r"\approx "), ("∴", r"\therefore "), ("…", r"\ldots "),
        ("⋯", r"\ldots "), ("ℝ", r"\mathbb{R}"), ("ℤ", r"\mathbb{Z}"), ("ℕ", r"\mathbb{N}"),
        ("ℚ", r"\mathbb{Q}"), ("⟨", r"\langle "), ("⟩", r"\rangle "), ("¢", r"\text{ cents}"),
        ("α", r"\alpha "), ("β", r"\beta "), ("γ", r"\gamma "), ("δ", r"\delta "),
        ("ε", r"\epsilon "), ("θ", r"\theta "), ("λ", r"\lambda "), ("μ", r"\mu "),
        ("ρ", r"\rho "), ("σ", r"\sigma "), ("φ", r"\phi "), ("ω", r"\omega "), ("Ω", r"\Omega "),
        ("Δ", r"\Delta "), ("½", r"\frac{1}{2}"), ("⅓", r"\frac{1}{3}"), ("⅔", r"\frac{2}{3}"),
        ("¼", r"\frac{1}{4}"), ("¾", r"\frac{3}{4}"), ("⅕", r"\frac{1}{5}"), ("⅖", r"\frac{2}{5}"),
        ("⅗", r"\frac{3}{5}"), ("⅘", r"\frac{4}{5}"), ("⅙", r"\frac{1}{6}"), ("⅚", r"\frac{5}{6}"),
        ("⅛", r"\frac{1}{8}"), ("⅜", r"\frac{3}{8}"), ("⅝", r"\frac{5}{8}"), ("⅞", r"\frac{7}{8}"),
    )
}  # fmt: skip
_RAISED = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹ⁿ]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_LEVEL = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹ⁿ⁺⁻₀₁₂₃₄₅₆₇₈₉", "0123456789n+-0123456789")
_ROOT = re.compile(r"([√∛])\s*(?:(\d+|[A-Za-zπ])|\(([^()]*)\))")

_GROUP = r"\s*\{([^{}]*(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}[^{}]*)*)\}"
_UNIT = r"\\(?:mathrm|text)\s*\{\s*([A-Za-z/]+)"
_FONTS = "bf rm it sf tt em cal bfseries itshape boldmath large Large LARGE huge Huge small tiny "
_FONTS += "normalsize displaystyle textstyle scriptstyle limits nolimits"
_SIZES = "left right middle big bigl bigr Big Bigl Bigr bigg biggl biggr Bigg Biggl Biggr"
_BOLD = "underline boldsymbol bm pmb mathsf mathcal mathtt mathnormal mathit mathbf emph fbox "
_BOLD += "boxed cancel uline textcolor color"
# Each rule: its commands (none: `\ `), the pattern, and the replacement.
_RULES: list[tuple[frozenset[str], re.Pattern[str], str]] = [
    (frozenset(commands.split()) or frozenset(" "), re.compile(pattern), replacement)
    for commands, pattern, replacement in (
        ("! ,", r"(?<=\d)\s*(?:,\s*\\!|\\,)\s*(?=\d{3}(?!\d))", ""),  # thousands
        (_SIZES, rf"\\(?:{'|'.join(_SIZES.split())})(?![A-Za-z])", ""),
        ("! $", r"(?<!\\)\\!|\\\$", ""),
        (", ; : >", r"(?<!\\)\\[,;:>]", " "),
        ("", r"(?<!\\)\\ ", " "),
        ("quad qquad thinspace medspace thickspace enspace nobreakspace",
         r"\\(?:q?quad|(?:thin|med|thick|en|nobreak)space)(?![A-Za-z])", " "),
        ("%", r"\\%", "%"),
        ("color textcolor", r"\\(?:text)?color\s*(?:\[\w+\])?\s*\{[^{}]*\}", r"\\textcolor "),
        ("color textcolor", r"\\textcolor (?!\s*\{)", ""),
        (_FONTS, rf"\\(?:{'|'.join(_FONTS.split())})(?![A-Za-z])", " "),
        ("boldsymbol bm mathsf mathbf mathit mathrm",
         r"\\(?:boldsymbol|bm|mathsf|mathbf|mathit|mathrm)\s+(?=[0-9A-Za-z\\(])", " "),
        ("mathbf Bbb", r"\\(?:mathbf|Bbb)\s*\{?\s*([RZNQ])(?![A-Za-z])\s*\}?", r"\\mathbb{\1}"),
        (_BOLD, rf"\\(?:{'|'.join(_BOLD.split())})(?![A-Za-z]){_GROUP}", r" \1 "),
        (_BOLD, rf"\\(?:{'|'.join(_BOLD.split())})(?![A-Za-z]){_GROUP}", r" \1 "),  # nested
        ("phantom hphantom vphantom hspace vspace tag label",
         r"\\(?:[hv]?phantom|[hv]space|tag|label)\*?\s*\{[^{}]*\}", ""),
        ("dots ldots cdots vdots dotsc dotsb", r"\\(?:[clv]?dots|dots[cbm])(?![A-Za-z])",
         r"\\ldots "),
        ("mathrm text", rf"{_UNIT}\s+([A-Za-z]+)\s*\^\s*\{{?\s*-\s*1\s*\}}?\s*\}}",
         r"\\text{ \1/\2}"),
        ("mathrm text", rf"{_UNIT}\s+([A-Za-z]+)\s*\^\s*\{{?\s*-\s*([23])\s*\}}?\s*\}}",
         r"\\text{ \1/\2}^\3"),
        ("mathrm text", rf"{_UNIT}\s*\^\s*\{{?\s*([23])\s*\}}?\s*\}}", r"\\text{ \1}^\2"),
        ("mathrm text operatorname", r"\\(?:mathrm|text|operatorname)\s*\{\s*mod\s*\}",
         r"\\bmod "),
        ("Omega", r"(?<=\d)\s*(?:\\mathrm\s*\{\s*)?\\Omega(?![A-Za-z])\s*\}?$", r"\\text{ ohm}"),
        ("textsuperscript", r"\\textsuperscript\s*\{([^{}]*)\}", r"^{\1}"),
        ("mathrm", r"\\mathrm\s*\{\s*([ei])\s*\}", r"\1"),
        ("dfrac tfrac cfrac", r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        ("dbinom tbinom", r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
        ("frac dfrac tfrac cfrac", r"\\frac\s*(\d|[A-Za-z](?![A-Za-z]))\s*(\d|[A-Za-z])(?!\d)",
         r"\\frac{\1}{\2}"),
        ("frac dfrac tfrac cfrac", r"\\frac\s*([0-9])\s*\{", r"\\frac{\1}{"),
        ("frac dfrac tfrac cfrac", r"(\\frac\s*\{[^{}]*\})\s*(\d)(?!\d)", r"\1{\2}"),
        ("choose", r"\{?\s*([0-9A-Za-z+-]+)\s*\\choose\s*([0-9A-Za-z+-]+)\s*\}?",
         r"\\binom{\1}{\2}"),
        ("sqrt", r"\\sqrt\s*(\d|[A-Za-z](?![A-Za-z]))(?!\d)", r"\\sqrt{\1}"),
        ("leqslant geqslant", r"\\(leq|geq)slant(?![A-Za-z])", r"\\\1"),
        ("le ge ne", r"\\(le|ge|ne)(?![A-Za-z])", r"\\\1q"),
        ("not", r"\\not\s*=", r"\\neq "),
        ("not", r"\\not\s*\\in(?![A-Za-z])", r"\\notin "),
        ("lt", r"\\lt(?![A-Za-z])", "<"),
        ("gt", r"\\gt(?![A-Za-z])", ">"),
        ("varnothing { }", r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "),
        ("lbrace", r"\\lbrace(?![A-Za-z])", r"\\{"),
        ("rbrace", r"\\rbrace(?![A-Za-z])", r"\\}"),
        ("vert lvert rvert", r"\\[lr]?vert(?![A-Za-z])", "|"),
        ("bigcup", r"\\bigcup(?![A-Za-z])", r"\\cup "),
        ("backslash", r"\\backslash(?![A-Za-z])", r"\\setminus "),
        ("begin", r"\\\\\s*\[\s*-?[\d.]+\s*(?:pt|em|ex|mm|cm)\s*\]", r"\\\\ "),
        ("begin", r"\{[bB]?matrix\}|\{smallmatrix\}", "{pmatrix}"),
        ("begin", r"[(\[]\s*(\\begin\{pmatrix\})", r"\1"),
        ("begin", r"(\\end\{pmatrix\})\s*[)\]]", r"\1"),
        ("begin", r"\\begin\{array\}\s*\{[^{}]*\}(.*)\\end\{array\}",
         r"\\begin{pmatrix}\1\\end{pmatrix}"),
        ("begin", r"[(\[]\s*(\\begin\{pmatrix\}.*\\end\{pmatrix\})\s*[)\]]", r"\1"),
        ("approx therefore", r"^\s*\\(?:approx|therefore)(?![A-Za-z])", ""),
        ("degree", r"\\degree(?![A-Za-z])", r"^\\circ "),
        ("prime", r"(?:\^\s*)?\{?\\prime(?![A-Za-z])\s*\}?", "'"),
        ("operatorname",
         r"\\operatorname\*?\s*\{\s*((?:arc)?(?:sin|cos|tan|cot)h?|sec|csc|ln|log|exp|max|min)\s*\}",
         r"\\\1 "),
        ("lg", r"\\lg(?![A-Za-z])", r"\\log_{10}"),
    )
]  # fmt: skip
_COMMAND = re.compile(r"\\([A-Za-z]+|.)", re.DOTALL)
_WRAPPER = re.compile(
    r"\\(?:text|mbox|hbox|mathrm|textbf|textrm|textsf|texttt|textit|textup|textnormal|"
    r"operatorname)\s*\{([^{}]*)\}"
)
_AROUND = re.compile(r"\\(?:text|mbox|textbf|mathrm)\s*\{(?=[^{}]*\\)")
_COUNTED = re.compile(
    r"\\(?:text|mbox|textbf|mathrm)\s*\{\s*([-+]?\\?\$?[\d.,]*\d)\s+([A-Za-z][A-Za-z .,-]*)\}"
)
_CIRCLE = r"\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})"
_DEGREES = re.compile(rf"\s*{_CIRCLE}\s*(?:(?:\\text|\\mathrm)\{{\s*[CF]\s*\}}|[CF]\b)?")
_ANGLE = re.compile(rf"(\d+(?:\.\d+)?|[A-Za-z]|\\[a-z]+)\s*{_CIRCLE}")
_TURNING = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_ORDINAL = re.compile(
    r"(?:the\s+)?(?:\\(?:text|mbox)\s*\{\s*)?(?:the\s+)?(\d+)\s*(?:\^\s*)?\{?\s*"
    r"(?:\\(?:text|mathrm|textrm|mbox)\s*\{\s*(?:st|nd|rd|th)\s*\}|(?:st|nd|rd|th)(?![A-Za-z]))"
    r"\s*\}?"
)
_KINDS = (
    r"(?:day|week|month|year|room|page|step|floor|number|question|level|row|column|house|box|team|"
    r"player|term|position|place|door|bottle|stage|round|person|digit|element|grade|multiple)"
)
_LABELLED = re.compile(rf"(?:the )?(?:{_KINDS} (\d+)|(\d+)(?:st|nd|rd|th) {_KINDS})", re.IGNORECASE)
_BRACED_COMMA = re.compile(r"(?<=\d)\{,\}(?=\d{3}(?!\d))")
_APOSTROPHES = re.compile(r"[-+]?\d{1,3}(?:'\d{3})+(?:\.\d+)?")
_IDLE_SPACE = re.compile(r"(?<![0-9A-Za-z])\s+|\s+(?![0-9A-Za-z])")

_TYPED = re.compile(r"(?<![\\A-Za-z])[A-Za-z]|[*<>^]|!=|\\(?:sqrt|binom)\s*\(")
_FUNCTION = re.compile(
    r"(?<![\\A-Za-z])(arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|ln|log|max|min|"
    r"gcd|binom)(?![a-z]{2})(?=[\s\d(\[\\^_{|a-zA-Z])"
)
_INVERSE = re.compile(r"(?<![\\A-Za-z])a(sin|cos|tan)(?=\s*\()")
_GREEK = re.compile(r"(?<![\\A-Za-z])(pi|theta|alpha|beta|gamma|lambda|omega|phi)(?![A-Za-z])")
_INFINITY = re.compile(r"(?<![\\A-Za-z])(?:infinity|infty|inf|oo)(?![A-Za-z])", re.IGNORECASE)
_CALL = re.compile(r"(?<![\\A-Za-z])(\\?sqrt|cbrt|abs|exp)\s*\(|\^\s*\(")
_CHOOSE = re.compile(r"(?:(?<![A-Za-z\\])C|\\binom)\s*\(\s*([0-9a-z]+)\s*,\s*([0-9a-z]+)\s*\)")
_POWER = re.compile(r"\^\s*([-+]\s*(?:\d+(?:\.\d+)?|[A-Za-z]))")
_SIGNS = ((re.compile(r"<=|=<"), r"\\leq "), (re.compile(r">=|=>"), r"\\geq "),
          (re.compile("!="), r"\\neq "))  # fmt: skip
_STAR = re.compile(r"(?<!\^)\s*\*\s*")
_CALLED = {
    "sqrt": (r"\sqrt{", "}"), r"\sqrt": (r"\sqrt{", "}"), "cbrt": (r"\sqrt[3]{", "}"),
    "abs": ("|", "|"), "exp": ("e^{", "}"), None: ("^{", "}"),
}  # fmt: skip


@lru_cache(maxsize=4096)
def _applicable(commands: frozenset[str]) -> tuple[int, ...]:
    """The replacement rules for these commands, in order."""
    return tuple(
        index for index, (names, _, _) in enumerate(_RULES) if not names.isdisjoint(commands)
    )


@lru_cache(maxsize=1 << 12)
def clean(text: str) -> str:
    r"""Remove LaTeX without meaning.

    `\text{}` stays, except around words such as "or more" and variables, which a parser would not
    see there.
    """
    if text.isdigit() and text.isascii():
        return text
    if not text.isascii():
        text = _RAISED.sub(lambda m: f"^{{{m[0].translate(_LEVEL)}}}", text)
        text = _LOWERED.sub(lambda m: f"_{{{m[0].translate(_LEVEL)}}}", text)
        text = _ROOT.sub(_root, text).translate(_CHARACTERS)
    if "\\" in text:
        for index in _applicable(frozenset(_COMMAND.findall(text))):
            _, pattern, replacement = _RULES[index]
            text = pattern.sub(replacement, text)
        while (around := _AROUND.match(text)) and closing(text, around.end() - 1) == len(text) - 1:
            text = text[around.end() : -1].strip()
        if "{" in text and _WRAPPER.search(text):
            text = _COUNTED.sub(r"\1\\text{ \2}", text)
            text = _WRAPPER.sub(lambda m: f" {m[1]} " if no_unit(m[1]) else m[0], text)
        if "\\circ" in text:
            if _TURNING.search(text):
                text = _ANGLE.sub(r"(\1 \\cdot \\frac{\\pi}{180})", text)
            text = _DEGREES.sub("", text)
    if "$" in text or "~" in text:
        text = text.replace("$", "").replace("~", " ")
    if "{,}" in text:
        text = _BRACED_COMMA.sub("", text).replace("{,}", ",")
    text = " ".join(text.split()).lstrip("= ").rstrip(".;。, ")
    if "'" in text and _APOSTROPHES.fullmatch(text):
        return text.replace("'", "")
    if ("t" in text or "d" in text) and (ordinal := _ORDINAL.match(text)):
        rest = text[ordinal.end() :].strip()
        if rest in ("", "}"):
            return ordinal[1]
        if _WRAPPER.fullmatch(rest):
            return f"{ordinal[1]} {rest}"
    return text


def labelled(cleaned: str) -> str | None:
    """The number of `Day 20` and of `the 16th term`."""
    if "\\" in cleaned or (not cleaned.isalnum() and " " not in cleaned):
        return None
    match = _LABELLED.fullmatch(cleaned)
    return None if match is None else match[1] or match[2]


def bare(cleaned: str) -> str:
    r"""A string that is equal for equal answers: `\text{}` unwrapped, needless spaces removed."""
    if "\\" in cleaned:
        cleaned = _WRAPPER.sub(r" \1 ", cleaned)
    return _IDLE_SPACE.sub("", cleaned.strip()) if " " in cleaned else cleaned


def typed(cleaned: str) -> str:
    """Turn plain text into LaTeX; LaTeX stays as it is."""
    text = cleaned
    if not _TYPED.search(text):
        return text
    text = text.replace("**", "^")
    for pattern, sign in _SIGNS:
        text = pattern.sub(sign, text)
    text = _INVERSE.sub(r"\\arc\1 ", text)
    text = _FUNCTION.sub(r"\\\1 ", text)
    text = _CHOOSE.sub(r"\\binom{\1}{\2}", text)
    text = _GREEK.sub(r"\\\1 ", text)
    text = _INFINITY.sub(r"\\infty ", text)
    text = _calls(text)
    text = _POWER.sub(r"^{\1}", text)
    return _STAR.sub(r" \\cdot ", text)


def closing(text: str, opening: int) -> int | None:
    """The position at which the bracket at `opening` closes; None if it does not."""
    depth = 0
    for index in range(opening, len(text)):
        if text[index] in "([{":
            depth += 1
        elif text[index] in ")]}":
            depth -= 1
            if depth == 0:
                return index
    return None


def _calls(text: str) -> str:
    r"""Turn `sqrt(…)` into `\sqrt{…}` and `^(…)` into `^{…}`; from the left, for nested ones."""
    position = 0
    while match := _CALL.search(text, position):
        opening = match.end() - 1
        end = closing(text, opening)
        if end is None:
            break
        left, right = _CALLED[match[1]]
        text = f"{text[: match.start()]}{left}{text[opening + 1 : end]}{right}{text[end + 1 :]}"
        position = match.start() + len(left)
    return text


def _root(match: re.Match[str]) -> str:
    index = "[3]" if match[1] == "∛" else ""
    return rf"\sqrt{index}{{{match[2] or match[3]}}}"
