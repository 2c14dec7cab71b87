r"""LaTeX and Markdown of texts: what is rendered, what stays, and what can never come in."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dto.redact import CONTROL
from dto.viewer.markup import ATTRIBUTES, LONGEST, TAGS, answer_text, formula, marked_up
from dto.viewer.nodes import passage
from dto.viewer.page import Chunk, encode
from dto.viewer.tree import Element, Node, RunText, el, source, to_html, to_text
from tests.viewer.generated import HOSTILE

SHOWN = {"b", "b.heading", "i.em", "code.code", "code.fence"}
OURS = {"span.rich", "span.mark", "span.math.math", "span.math.wide", "span.math.display",
        "span.control", "span.bullet", *SHOWN}  # fmt: skip


def elements(nodes: list[Node] | tuple[Node, ...]) -> list[Element]:
    found = []
    for node in nodes:
        if isinstance(node, Element):
            found += [node, *elements(node.children)]
    return found


def rendered(text: str) -> list[str]:
    """The sources of the formulas, and Markdown as tag and content."""
    found = []
    for each in elements(marked_up(text)):
        if each.tag.startswith("span.math"):
            found.append(source(each).strip())
        elif each.tag in SHOWN:
            shown = [child for child in each.children if child[0] != "span.mark"]
            found.append(f"{each.tag}:{source(el('x', shown))}")
    return found


@pytest.mark.parametrize(
    ("text", "formulas"),
    [
        ("so $x$ and $y^2$.", ["$x$", "$y^2$"]),
        ("the $n$th, the $k$-th", ["$n$", "$k$"]),
        (r"is \(x + 1\), or", [r"\(x + 1\)"]),
        ("as\n\n\\[ \\frac{1}{2} \\]\n\nhence", [r"\[ \frac{1}{2} \]"]),
        ("$$x$$", ["$$x$$"]),
        ("$a$$b$", ["$a$", "$b$"]),
        (r"**Final Answer** \boxed{\frac{1}{2}}.", ["b:Final Answer", r"\boxed{\frac{1}{2}}"]),
        ("\\begin{align}\na &= b \\\\[2pt]\n&= c\n\\end{align}",
         ["\\begin{align}\na &= b \\\\[2pt]\n&= c\n\\end{align}"]),
        (r"$\text{if and only if } x$", [r"$\text{if and only if } x$"]),
        (r"costs \$5, $x = \$5$", [r"$x = \$5$"]),
        ("日本語$x$です", ["$x$"]),
    ],
)  # fmt: skip
def test_formulas(text: str, formulas: list[str]) -> None:
    assert rendered(text) == formulas


@pytest.mark.parametrize(
    "text",
    [
        "it costs $5 and $10", "costs $5, or $6.", "US$5 to US$6", "between $10–$20", "$5-$10",
        "$100 is more than the price of $50", "$5/kg and 6$", r"\$5 and \$6", "win $1M or $2M",
        "a $x", "$ x $", "$x\n\ny$", r"\( x", r"x \)", r"\[ x", "$$ x", "$$$$", "$$", "$", r"\(\)",
        r"\boxed{1", r"\boxed 1", r"\begin{align} x", r"\begin{tikzpicture}x\end{tikzpicture}",
        r"\(\frac\)", r"\(x^\)", r"\(\left( x\)", r"\(\nosuchcommand{x}\)", 
        r"\(\begin{foo}x\end{foo}\)", r"$\phantom{x} + 1$", r"\(\vphantom{2}5\)", 
        r"\boxed{1\hphantom{0}}",
        r"\(a \\ b\)", "echo $HOME/bin:$PATH", "$x; echo $y", "${name} and ${other}",
        r"\(\newcommand{\a}{x}\a\)", r"\(\def\a{x}\a\)",
        r"\(x{\)", r"\(x}\)", "2**3 and 4**5", "a*b*c", "3 * 4 * 5", "f(*args, **kw)", "***x***",
        "** x **",
        "a^*b^*", "*x", "*5*", "**a\nb**", "_x_ __y__", "a_b_c", "#1", "#tag", "# of apples",
        "- 5\n- 3", "+ x", "-x", "```\nnever closed", "``", "`", "---", "[x](http://x.y)",
        "<b>x</b>", "| a | b |", r"\\(x\\)", r"\`x\`",
    ],
)  # fmt: skip
def test_near_misses_stay_as_they_are(text: str) -> None:
    assert rendered(text) == []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("**bold** and *in italics*, `code $x$`",
         ["b:bold", "i.em:in italics", "code.code:code $x$"]),
        ("### **Step 1** of $x$\ntext", ["b.heading:**Step 1** of $x$", "b:Step 1", "$x$"]),
        ("# Title\n#### Four", ["b.heading:Title", "b.heading:Four"]),
        ("```py\nprint('$x$ **b**')\n```\nb", ["code.fence:print('$x$ **b**')"]),
        ("答案是**五**。", ["b:五"]),
        ("**$x$ is it**", ["b:$x$ is it", "$x$"]),
        ("``a`b``", ["code.code:a`b"]),
    ],
)  # fmt: skip
def test_markdown(text: str, parts: list[str]) -> None:
    assert rendered(text) == parts


def test_a_list_has_bullets() -> None:
    tags = [each.tag for each in elements(marked_up("- one\n  * two\n- 3\n* **four**"))]
    assert tags.count("span.bullet") == 3


def test_a_formula_of_its_own_lines_takes_the_blank_lines_around_it() -> None:
    (rich,) = marked_up("so\n\n\\[ x \\]\n\nthen")
    assert isinstance(rich, Element)
    before, math, after = rich.children
    assert (before, after) == (RunText("so"), RunText("then"))
    assert source(math) == "\n\n\\[ x \\]\n\n"


@pytest.mark.parametrize(
    ("latex", "shown"),
    [
        (r"\frac{1}{2}", "12"), (r"\mathbb{R}", "ℝ"), (r"a \le b", "a≤b"), 
        (r"\text{a b}", "a\xa0b"), ("50% of 2", "50%of2"),
        (r"\{1, 2\}", "{1,2}"), (r"\sqrt[3]{x}", "x3"), 
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "(1234)"),
        (r"\begin{gather*}a\\b\end{gather*}", "ab"), (r"\sin x", "sinx"), (r"10\%", "10%"),
    ],
)  # fmt: skip
def test_what_a_formula_shows(latex: str, shown: str) -> None:
    tree = formula(latex)
    assert tree is not None and "".join(leaves(tree)) == shown


def leaves(node: Node) -> list[str]:
    if isinstance(node, Element):
        return [text for child in node.children for text in leaves(child)]
    return [node if isinstance(node, str) else node.text]


@pytest.mark.parametrize(
    "latex",
    [
        r"\href{javascript:alert(1)}{x}", r"\text{<script>alert(1)</script>}",
        r"\style{position:fixed;inset:0}{x}", r"\class{top}{x}", r"\color{white}{x}",
        r"\text{&lt;img src=x onerror=alert(1)&gt;}", r"\hspace{99999em} x",
        r"\rule{99em}{99em}", r"\tag{<b>}", r"\mathrm{&#x3C;script&#x3E;}",
    ],
)  # fmt: skip
def test_hostile_formulas(latex: str) -> None:
    tree = formula(latex)
    if tree is not None:
        html = to_html(tree)
        for word in ("<script", "<img", "<b>", "href", "style=", "class", "javascript",
                     "color", "9999"):  # fmt: skip
            assert word not in html
    check(marked_up(f"${latex}$"))


def check(nodes: list[Node]) -> None:
    """No element, attribute or value outside the lists."""
    for each in elements(nodes):
        if each.tag in TAGS:
            for name, value in each.attributes.items():
                assert ATTRIBUTES[name].fullmatch(value)
        else:
            assert each.tag in OURS
            assert set(each.attributes) <= {"title"}


PARTS = st.sampled_from(
    ["$", "$$", r"\(", r"\)", r"\[", r"\]", "**", "*", "`", "```\n", "\n", "\n\n", "# ", "- ", " ",
     r"\boxed{", "{", "}", r"\frac", r"\sqrt", "x", "5", "^", "_", "&", r"\\", r"\begin{align}",
     r"\end{align}", r"\left(", r"\right)", r"\text{", r"\href{javascript:x}", "word", "über",
     "🧮", "\x1b", "\u202e", "&#x3C;", "<script>", r"\color{red}", r"\style{a:b}", r"\class{c}",
     r"\operatorname{", r"\hline", "'", r"\unknown", r"\verb|", r"\begin{array}{c|c}",
     r"\end{array}", "%", r"\tag{1}", *sorted(HOSTILE.values())]
)  # fmt: skip
TEXTS = st.one_of(st.lists(PARTS, max_size=30).map("".join), st.text(max_size=200))


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_every_character_stays_in_its_place(text: str) -> None:
    nodes = marked_up(text)
    assert source(el("div", nodes)) == CONTROL.sub("", text)
    plain = "".join(piece for piece, _ in to_text(el("div", el("span.rich", nodes))))
    assert "".join(plain.split()) == "".join(
        CONTROL.sub(lambda each: f"‹{label(each[0])}›", text).split()
    )


def label(character: str) -> str:
    code = ord(character)
    return chr(0x2400 + code) if code < 32 else f"U+{code:04X}"


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_nothing_comes_in_that_is_on_no_list(text: str) -> None:
    check(marked_up(text))
    check(answer_text(text))


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_a_text_is_cut_from_the_page_as_it_was(text: str) -> None:
    """As the page does it: pieces in units of UTF-16, of a text that is stored once."""
    chunk = Chunk([], {}, {}, [])
    encoded = [encode(node, chunk) for node in marked_up(text)]
    texts = list(chunk.texts)
    for node in encoded:
        if isinstance(node, list) and node[0] == "rich":
            whole = texts[node[1]].encode("utf-16-le", "surrogatepass")
            lengths = [*pieces(node)]
            assert sum(lengths) * 2 == len(whole)
            assert whole.decode("utf-16-le", "surrogatepass") == CONTROL.sub("", text)
    assert len(chunk.formulas) == len(chunk.trees)


def pieces(node: list) -> list[int]:
    found: list[int] = []
    for part in node[2:]:
        if isinstance(part, int):
            found.append(part)
        elif isinstance(part, list) and part[0] != "math":
            found += pieces(part)
    return found


@pytest.mark.parametrize(
    "piece",
    ["$", "$$", r"\(", r"\[", "*", "**", "`", "```\n", r"\boxed{", r"\begin{align}", "# a\n", "$x$",
     r"\(x_1\)", "$a", r"\[x\]", "- a\n", "**b** ", "``` ", r"\frac{", "x^", "{"],
)  # fmt: skip
def test_a_long_text_takes_bounded_time(piece: str) -> None:
    begun = time.process_time()
    passage(piece * (200_000 // len(piece)))
    assert time.process_time() - begun < 20


@pytest.mark.parametrize(
    "latex",
    [r"\frac{" * 330 + "1" + "}{2}" * 330, "{" * 990 + "}" * 990, "x_1" * 660, 
     r"\sqrt{" * 300 + "}" * 300,
     "\\begin{array}{" + "c" * 1_900 + "}1\\end{array}", r"\left(" * 300, "a" * LONGEST,
     "a" * (LONGEST + 1), "_" * 2_000, r"\verb|" * 300, "&" * 2_000],
)  # fmt: skip
def test_a_huge_formula_takes_bounded_time(latex: str) -> None:
    begun = time.process_time()
    tree = formula(latex)
    assert time.process_time() - begun < 2
    assert tree is None or len(elements([tree])) <= 1_500


def test_an_answer_may_be_a_formula_without_delimiters() -> None:
    for text in (r"\frac{1}{2}", "x^2", r"(3, \infty)", "a_1"):
        assert any(each.tag == "math" for each in elements(answer_text(text)))
    for text in ("5", "yes", "foo_bar", "10 %", "$5", r"\nosuch{1}", ""):
        assert not any(each.tag == "math" for each in elements(answer_text(text)))
