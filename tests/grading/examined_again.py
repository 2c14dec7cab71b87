r"""A second set of whole responses by kind, as `examined`: 205 of 232 were right at first sight.

`output` is a whole response, boxed or stated; lists whose names begin with `CHOICE` are of rule
`choice`, with `CODE` of rule `code`.
"""

from __future__ import annotations

import json

Row = tuple[str, str, bool, str]

SMALL_CONSTANTS: list[Row] = [
    (r"\frac{1}{3^{80}}", r"The chance is $\boxed{\frac{1}{9^{40}}}$.", True, "another base"),
    (r"\frac{1}{3^{80}}", r"The answer is $3^{-81}$.", False, "a third of it"),
    (
        r"\frac{2}{\binom{200}{100}}",
        r"\boxed{\frac{2\cdot(100!)^2}{200!}}",
        True,
        "the binomial written out",
    ),
    (r"1.602\times 10^{-19}", r"So $e=\boxed{1.602\cdot10^{-19}}$.", True, "a dot for the cross"),
    (r"1.602\times 10^{-19}", r"So $e=\boxed{1.062\cdot10^{-19}}$.", False, "digits exchanged"),
    (r"1-\frac{1}{365^{29}}", r"\boxed{1-365^{-29}}", True, "a negative power"),
    (r"1-\frac{1}{365^{29}}", r"\boxed{1-365^{-30}}", False, "they part after 74 digits"),
    (".0000672", r"\boxed{6.72\times10^{-5}}", True, "scientific notation"),
]

EQUATIONS: list[Row] = [
    ("3x+4y=12", r"The tangent is $\boxed{y=3-\frac34x}$.", True, "solved for y"),
    ("3x+4y=12", r"The tangent is $\boxed{4x+3y=12}$.", False, "coefficients exchanged"),
    (r"\frac{x^2}{16}-\frac{y^2}{9}=1", r"\boxed{9x^2-16y^2=144}", True, "without denominators"),
    (
        r"\frac{x^2}{16}-\frac{y^2}{9}=1",
        r"\boxed{\frac{y^2}{16}-\frac{x^2}{9}=1}",
        False,
        "it opens the other way",
    ),
    ("v^2=u^2+2as", r"\boxed{u^2=v^2-2as}", True, "rearranged"),
    ("v^2=u^2+2as", r"\boxed{v^2=u^2-2as}", False, "a sign"),
    ("x^2+y^2-6x+8y=0", r"\boxed{(x-3)^2+(y+4)^2=5^2}", True, "squares completed"),
    (r"y=\frac{1}{2}x-4", "The answer is $x - 2y = 8$.", True, "implicit and stated"),
]

LETTERS: list[Row] = [
    ("15x - 80", r"\boxed{5(3x-16)}", True, "factored"),
    ("15x - 80", r"\boxed{15-80}", False, "the letter is lost"),
    ("6r^2-4r-24", r"\boxed{2\left(3r^2-2r-12\right)}", True, "factored"),
    (
        r"\frac{q^2}{4\pi\epsilon_0 r^2}",
        r"\boxed{\frac{1}{4\pi\epsilon_0}\cdot\frac{q^2}{r^2}}",
        True,
        "the constant before it",
    ),
    (
        r"\frac{q^2}{4\pi\epsilon_0 r^2}",
        r"\boxed{\frac{1}{4\pi\epsilon_0}\cdot\frac{q^2}{r}}",
        False,
        "a potential is no force",
    ),
    ("-13x+3", r"\boxed{3-13x}", True, "terms exchanged"),
    (r"2\sin\theta", r"\boxed{2\sin\phi}", False, "another angle"),
    (r"\alpha+2\beta", r"The answer is $2\beta+\alpha$.", True, "Greek and stated"),
]

GOLD_READ_IN_PART: list[Row] = [
    (r"x = 4 \text{ or } x = -6", r"\boxed{x=-6 \text{ or } x=4}", True, "exchanged"),
    (r"x = 4 \text{ or } x = -6", r"\boxed{x=4}", False, "one of two"),
    (r"f(x) = 2x \text{ for all } x", r"\boxed{f(x)=2x}", True, "the quantifier left out"),
    (r"f(x) = 2x \text{ for all } x", r"\boxed{f(x)=x}", False, "another function"),
    (
        r"\text{all integers } n \ge 3",
        r"\boxed{n\ge 3,\ n\in\mathbb{Z}}",
        True,
        "in symbols",
    ),
    (r"\text{all integers } n \ge 3", r"\boxed{\text{all integers } n \ge 4}", False, "one less"),
    (
        r"\frac{\pi}{4}+n\pi, n\in\mathbb{Z}",
        r"\boxed{x = \frac{\pi}{4} + n\pi \text{ for } n\in\mathbb{Z}}",
        True,
        "the unknown named, a word for the comma",
    ),
    (
        r"a=3, b=-2, c=\frac{1}{2}",
        r"\boxed{a=3,\quad b=-2,\quad c=0.5}",
        True,
        "wide gaps and a decimal",
    ),
]

PLAIN_NOTATION: list[Row] = [
    (r"2\sqrt{113}", "The answer is 2*sqrt(113).", True, "a plain root, stated"),
    (r"2\sqrt{113}", r"\boxed{sqrt(2*113)}", False, "the factor under the root"),
    ("x^3+3x-6", r"\boxed{x**3 + 3*x - 6}", True, "as Python writes it"),
    ("(x-1)**2*(x+4)", r"\boxed{(x-1)^2(x+4)}", True, "stars in the gold answer"),
    ("(x-1)**2*(x+4)", r"\boxed{(x-1)(x+4)^2}", False, "the other root is double"),
    ("exp(-t/5)*sin(3*t)", r"\boxed{e^{-t/5}\sin(3t)}", True, "a damped wave"),
    ("exp(-t/5)*sin(3*t)", r"\boxed{e^{t/5}\sin(3t)}", False, "a growing wave"),
    (r"\ln(x^2+1)+C", r"\boxed{ln(x^2+1) + C}", True, "an antiderivative"),
]

THOUSANDS: list[Row] = [
    ("129200", r"The profit is $\boxed{\$129{,}200}$.", True, "a dollar sign and a comma"),
    ("93000", "The answer is 93 000.", True, "a space, stated"),
    ("118000", r"\boxed{\text{118,000}}", True, "in text mode"),
    ("118000", r"\boxed{118}", False, "the thousands are lost"),
    ("1,048,576", r"\boxed{2^{20}}", True, "a power"),
    ("1,048,576", r"\boxed{1,048,567}", False, "digits exchanged"),
    (r"\$2,\!450.50", r"\boxed{2450.50}", True, "cents behind the thousands"),
    ("6{,}400", r"\boxed{64,000}", False, "ten times as much"),
]

INTERVALS_INEQUALITIES: list[Row] = [
    (
        r"\left(\frac{3}{5},\frac{8}{3}\right]",
        r"\boxed{\frac35 < x \le \frac83}",
        True,
        "fractions at both ends",
    ),
    (
        r"\left(\frac{3}{5},\frac{8}{3}\right]",
        r"\boxed{\frac35 \le x < \frac83}",
        False,
        "the other end belongs",
    ),
    (r"x \ge -4", r"\boxed{[-4, +\infty)}", True, "plus before infinity"),
    (r"x \ge -4", r"\boxed{(-4,\infty)}", False, "the end belongs"),
    (r"(2,12) \cup (12,102)", r"\boxed{2<x<102,\ x\neq 12}", True, "a point excepted"),
    ("-1 < k < 1", "The answer is $k∈(-1,1)$.", True, "a character, stated"),
    (r"[0, 2\pi)", r"\boxed{0\le\theta<2\pi}", True, "a Greek letter"),
    (r"a \le -2 \text{ or } a \ge 6", r"\boxed{a\in[-2,6]}", False, "what lies between"),
]

SET_BUILDER: list[Row] = [
    (r"\{x \mid -3 \le x < 5\}", r"\boxed{[-3,5)}", True, "as interval"),
    (r"\{x \mid -3 \le x < 5\}", r"\boxed{(-3,5]}", False, "brackets exchanged"),
    (
        r"\{x \mid x \neq 2 \text{ and } x \neq -2\}",
        r"\boxed{(-\infty,-2)\cup(-2,2)\cup(2,\infty)}",
        True,
        "two points cut out",
    ),
    (r"\{x|0<x<2\}", r"\boxed{A\cap B=(0,2)}", True, "the set named"),
    (r"\{x|0<x<2\}", r"\boxed{\{x\mid 0<x\le 2\}}", False, "the end does not belong"),
    (r"\{-1,0,1\}", r"\boxed{\{x\in\mathbb{Z}\mid -2<x<2\}}", True, "from the other side"),
    (r"\{-1,0,1\}", r"\boxed{\{x\in\mathbb{Z}\mid -2\le x\le 2\}}", False, "two too many"),
    (
        r"[1,\infty)",
        r"故 $m$ 的取值范围是 $\boxed{\{m \mid m\geqslant 1\}}$。",
        True,
        "Chinese sign",
    ),
]

FONTS_COLOURS: list[Row] = [
    (r"\frac{639}{40}", r"\boxed{\mathbf{\frac{639}{40}}}", True, "a bold fraction"),
    (r"288 \pi", r"\boxed{\textcolor[HTML]{0055AA}{288\pi}}", True, "a colour by its code"),
    (r"288 \pi", r"\boxed{\textcolor{blue}{288}\pi^2}", False, "blue, another power"),
    (r"\text{even}", r"\boxed{\textit{even}}", True, "italics"),
    (r"\text{even}", r"\boxed{\textit{odd}}", False, "italics, the opposite"),
    ("73", r"The answer is $\displaystyle \mathbf{73}$.", True, "bold in display style"),
    ("-128", r"\boxed{\Large -128}", True, "large"),
    ("-128", r"\boxed{\colorbox{yellow}{$128$}}", False, "a yellow ground, the sign lost"),
]

ORDINALS: list[Row] = [
    ("16", "The answer is the 16th term.", True, "stated, and of what"),
    ("16", r"\boxed{15^{\text{th}}}", False, "the one before"),
    (r"31^{\text{st}}", r"\boxed{31\textsuperscript{st}}", True, "raised in text"),
    (r"5^{\text{th}}", r"\boxed{\text{fifth}}", True, "in words"),
    (r"5^{\text{th}}", r"\boxed{\text{sixth}}", False, "in words, the next"),
    ("82", r"\boxed{\text{the 82nd}}", True, "an article"),
    ("82", r"\boxed{\text{the 28th}}", False, "an article, digits exchanged"),
    ("39", "**Answer:** the 39th day", True, "a label and a noun"),
]

SEVERAL_BOXES: list[Row] = [
    (
        "6, 10, 15",
        r"The sides are $\boxed{6}$, $\boxed{10}$, and $\boxed{15}$.",
        True,
        "a box for each side",
    ),
    (
        "6, 10, 15",
        r"The sides are $\boxed{6}$, $\boxed{10}$, and $\boxed{51}$.",
        False,
        "digits of the last exchanged",
    ),
    (
        r"-\frac{1}{2}, 3",
        "- First root: $\\boxed{3}$\n- Second root: $\\boxed{-\\frac{1}{2}}$",
        True,
        "under bullets",
    ),
    (
        r"-\frac{1}{2}, 3",
        "- First root: $\\boxed{3}$\n- Second root: $\\boxed{\\frac{1}{2}}$",
        False,
        "under bullets, a sign",
    ),
    (
        "196",
        r"My first count was $\boxed{204}$, but it has the diagonal twice. "
        r"Corrected, the answer is $\boxed{196}$.",
        True,
        "corrected",
    ),
    (
        "204",
        r"My first count was $\boxed{204}$, but it has the diagonal twice. "
        r"Corrected, the answer is $\boxed{196}$.",
        False,
        "given up",
    ),
    ("m=4, n=9", "$m=\\boxed{4}$\n\n$n=\\boxed{9}$", True, "named, on two lines"),
    (
        r"\frac{3}{4}",
        r"The probability is $\boxed{\frac{3}{4}}$, that is, $\boxed{0.75}$.",
        True,
        "one value in two forms",
    ),
]

HASHES: list[Row] = [
    ("1218", "The three bills make 1218 dollars.\n#### 1,218", True, "a comma"),
    ("1218", "The three bills make 1281 dollars.\n#### 1,281", False, "digits exchanged"),
    ("0.75", "He eats 6 of 8 slices.\n#### 3/4", True, "a fraction"),
    ("-12", "It falls by 20 from 8.\n#### -12 degrees", True, "a sign and a unit"),
    ("-12", "It falls by 20 from 8.\n#### 12 degrees", False, "the sign is lost"),
    ("163", "100 + 63 = 163\n#### **163**", True, "emphasis"),
    ("15", "Half of 30 is 15.\n#### 30", False, "the number before the last step"),
    ("490", "7 * 70 = 490\n#### 490\n\nThe answer is 490.", True, "said twice"),
]

TEXT_BEHIND: list[Row] = [
    ("60", "The answer is 60, because each of the 6 trips takes 10 minutes.", True, "a reason"),
    ("10", "The answer is 60, because each of the 6 trips takes 10 minutes.", False, "a reason"),
    ("0.05", "**Answer:** $0.05 (5 cents)", True, "another unit in parentheses"),
    (
        r"\frac{2}{3}",
        "The answer is 2/3, whereas staying wins with only 1/3.",
        True,
        "a contrast",
    ),
    (
        r"\frac{1}{3}",
        "The answer is 2/3, whereas staying wins with only 1/3.",
        False,
        "a contrast",
    ),
    ("7", "Answer: 7 moves, the least possible for 3 discs.", True, "an apposition"),
    ("3", "Answer: 7 moves, the least possible for 3 discs.", False, "an apposition"),
    (r"145^\circ", r"The answer is $145^\circ$ — the supplement of $35^\circ$.", True, "a dash"),
]

HEADINGS_DISPLAY: list[Row] = [
    (
        r"\frac{3840}{289}",
        "---\n\n### ✅ Final Answer:\n\n$$\n\\frac{3840}{289}\n$$",
        True,
        "a check mark before the heading",
    ),
    (
        r"\frac{3840}{289}",
        "---\n\n### ✅ Final Answer:\n\n$$\n\\frac{3480}{289}\n$$",
        False,
        "a check mark before the heading, digits exchanged",
    ),
    ("20", "### **Final Answer**\n\n**Day 20**", True, "a noun before the number"),
    (r"6\sqrt{2}", "The answer is:\n\n\\[\n6\\sqrt{2}\n\\]", True, "square brackets"),
    (
        r"6\sqrt{2}",
        "The answer is:\n\n\\[\n2\\sqrt{6}\n\\]",
        False,
        "square brackets, numbers exchanged",
    ),
    (
        "x^3+3x-6",
        "**Final Answer:**\n\n\\begin{equation*}\nx^3 + 3x - 6\n\\end{equation*}",
        True,
        "an equation environment",
    ),
    (r"76^\circ", "# Answer\n\n$67^\\circ$", False, "a first heading, digits exchanged"),
    ("240", "Final Answer:\n\n```\n240\n```", True, "a fence"),
]

STATED_LANGUAGES: list[Row] = [
    ("34", "Also lautet die Antwort: 34.", True, "German, the verb before the noun"),
    ("34", "Also lautet die Antwort: 43.", False, "German, digits exchanged"),
    (r"\frac{11}{36}", r"La réponse finale est donc $\frac{11}{36}$.", True, "French, final"),
    ("25", "La réponse finale est donc 52.", False, "French, digits exchanged"),
    ("1260", "Sumando todo se obtiene 1260.\n\nRespuesta: 1260", True, "Spanish, a label"),
    ("1260", "Por lo tanto, la respuesta es 1620.", False, "Spanish, digits exchanged"),
    (r"2\sqrt{5}", r"よって、答えは $2\sqrt{5}$ である。", True, "Japanese, as books write"),
    (r"\frac{\sqrt{3}}{3}", r"综上，本题的答案是 $\frac{\sqrt{3}}{3}$。", True, "Chinese"),
]

UNTERMINATED: list[Row] = [
    (r"\frac{5}{13}", r"Hence $\cos A = \boxed{\frac{5}{13", False, "cut in the denominator"),
    (
        "110",
        "The sum is \\boxed{110}.\n\nLet me check it again. Yes.\n\n**Final Answer**\n\\boxed{",
        False,
        "no stand-in from before the check",
    ),
    ("(8,-2)", r"The vertex is $\boxed{(8,-2)", False, "only the parenthesis is closed"),
    ("3", r"I had \boxed{3} before, but the sum needs \boxed{\frac{1}{2", False, "no stand-in"),
    (r"\text{Evelyn}", r"The fastest is $\boxed{\text{Evelyn", False, "cut in text mode"),
    ("810", "Therefore\n$$\n\\boxed{81", False, "cut within the number"),
    (r"\{2,4\}", r"\boxed{\left\{2,4\right\}}", True, "escaped braces and closed"),
    ("1024", r"There are $\boxed{2^{10}}$ subsets.", True, "nested braces and closed"),
]

UNITS_TEXT: list[Row] = [
    (r"15\mbox{ cm}^2", r"\boxed{15\text{ square centimeters}}", True, "in words"),
    (r"15\mbox{ cm}^2", r"\boxed{15\text{ cm}^3}", False, "an area is no volume"),
    (r"\$18.90", r"\boxed{18.9 \text{ dollars}}", True, "a word for the sign"),
    (r"3.6\text{ km}", r"\boxed{3600\text{ m}}", True, "converted"),
    (r"3.6\text{ km}", r"\boxed{3.6\text{ m}}", False, "a thousandth"),
    (r"4.5\ \Omega", r"\boxed{4.5\text{ ohms}}", True, "a resistance in words"),
    (r"180^\circ", r"\boxed{180 \text{ degrees}}", True, "an angle in words"),
    (r"25\text{ mL}", r"\boxed{25\text{ L}}", False, "the prefix is lost"),
]

BASES: list[Row] = [
    ("52_8", r"\boxed{(52)_8}", True, "parentheses round the digits"),
    ("52_8", r"\boxed{25_8}", False, "digits exchanged"),
    ("40_9", r"\boxed{40\text{ in base }9}", True, "in words"),
    ("40_9", r"\boxed{40_{7}}", False, "another base"),
    ("1101_2", r"\boxed{1101_{\text{base }2}}", True, "a word in the index"),
    ("2A_{12}", r"\boxed{2\mathrm{A}_{12}}", True, "an upright letter as digit"),
    ("2A_{12}", r"\boxed{2B_{12}}", False, "another letter as digit"),
    ("-132_4", "The answer is $-132_4$.", True, "negative and stated"),
]

MATRICES_VECTORS: list[Row] = [
    (
        r"\begin{pmatrix} -18 \\ -49 \\ 96 \end{pmatrix}",
        r"\boxed{\begin{bmatrix}-18\\-49\\96\end{bmatrix}}",
        True,
        "square brackets",
    ),
    (
        r"\begin{pmatrix} -18 \\ -49 \\ 96 \end{pmatrix}",
        r"\boxed{\begin{bmatrix}-18\\49\\96\end{bmatrix}}",
        False,
        "square brackets, a sign",
    ),
    (
        r"\begin{pmatrix} 16/49 \\ 48/49 \\ 24/49 \end{pmatrix}",
        r"\boxed{\frac{8}{49}\begin{pmatrix}2\\6\\3\end{pmatrix}}",
        True,
        "the common factor taken out",
    ),
    (
        r"\begin{pmatrix} 0 & 1 \\ -1 & 0 \end{pmatrix}",
        "The answer is\n$$\n\\begin{pmatrix}0&1\\\\-1&0\\end{pmatrix}\n$$",
        True,
        "stated as display",
    ),
    (
        r"\begin{pmatrix} 0 & 1 \\ -1 & 0 \end{pmatrix}",
        "The answer is\n$$\n\\begin{pmatrix}0&-1\\\\1&0\\end{pmatrix}\n$$",
        False,
        "turned the other way",
    ),
    (
        r"\begin{pmatrix} -7 \\ 16 \\ 5 \end{pmatrix}",
        r"\boxed{-7\mathbf{i}+16\mathbf{j}+5\mathbf{k}}",
        True,
        "three unit vectors",
    ),
    (
        r"\begin{pmatrix} 2 & 0 \\ 0 & 2 \end{pmatrix}",
        r"\boxed{2\begin{pmatrix}1&0\\0&1\end{pmatrix}}",
        True,
        "a multiple of the identity",
    ),
    (
        r"\begin{pmatrix} 2 & 0 \\ 0 & 2 \end{pmatrix}",
        r"\boxed{\begin{pmatrix}2&2\\0&2\end{pmatrix}}",
        False,
        "one entry more",
    ),
]

PLUS_MINUS: list[Row] = [
    (
        r"\pm\frac{\sqrt{21}}{5}",
        r"\boxed{\frac{\sqrt{21}}{5},\ -\frac{\sqrt{21}}{5}}",
        True,
        "both written out",
    ),
    (r"\pm\frac{\sqrt{21}}{5}", r"\boxed{-\frac{\sqrt{21}}{5}}", False, "only minus"),
    (
        r"\frac{-3 \pm \sqrt{17}}{4}",
        r"\boxed{-\frac34 \pm \frac{\sqrt{17}}{4}}",
        True,
        "the fraction split",
    ),
    (r"\frac{-3 \pm \sqrt{17}}{4}", r"\boxed{\frac{3\pm\sqrt{17}}{4}}", False, "a sign"),
    (r"2 \pm \sqrt{7}", "The answer is x = 2 + √7 or x = 2 − √7.", True, "characters, stated"),
    (r"\pm 3i", r"\boxed{3i,\ -3i}", True, "imaginary"),
    (r"\pm 1, \pm 2", r"\boxed{-2,-1,1,2}", True, "four values"),
    (r"\pm 1, \pm 2", r"\boxed{-2,1,2}", False, "one of four is missing"),
]

SETS_TUPLES: list[Row] = [
    ("(2,4)", r"They meet at $\boxed{\left(2,\,4\right)}$.", True, "a thin space"),
    ("(2,4)", r"They meet at $\boxed{(4,2)}$.", False, "coordinates exchanged"),
    ("(1,5),(2,3),(7,1)", r"\boxed{(7,1),\ (2,3),\ (1,5)}", True, "pairs in another order"),
    ("(1,5),(2,3),(7,1)", r"\boxed{(7,1),\ (3,2),\ (1,5)}", False, "one pair turned round"),
    (r"\{2, 3, 5, 7\}", r"\boxed{2,\ 3,\ 5 \text{ and } 7}", True, "without braces"),
    (r"\{2, 3, 5, 7\}", r"\boxed{\{2,3,5\}}", False, "one is missing"),
    (r"\left( \frac{3}{2}, -13 \right)", r"\boxed{(1.5,-13)}", True, "a decimal"),
    (
        r"\left( 3, \frac{\pi}{2} \right)",
        r"\boxed{(r,\theta)=\left(3,\tfrac{\pi}{2}\right)}",
        True,
        "polar coordinates named",
    ),
]

CONGRUENCE_MISC: list[Row] = [
    (r"x \equiv 5 \pmod{12}", r"\boxed{x \equiv 5 \ (\mathrm{mod}\ 12)}", True, "by hand"),
    (r"x \equiv 5 \pmod{12}", r"\boxed{x \equiv 7 \pmod{12}}", False, "another residue"),
    (r"\text{east}", r"\boxed{\text{East}}", True, "a capital"),
    (r"\text{east}", "The answer is west.", False, "the opposite"),
    (r"\text{Evelyn}", "Her slope is the steepest.\n\n**Answer:** Evelyn", True, "a name"),
    (r"\infty", r"\boxed{+\infty}", True, "plus"),
    (r"\infty", r"\boxed{-\infty}", False, "minus"),
    (
        r"\text{infinitely many}",
        r"\boxed{\text{infinitely many solutions}}",
        True,
        "and of what",
    ),
]

PERCENT_RATIO: list[Row] = [
    ("5:12", "The answer is 5:12.", True, "stated with a full stop"),
    ("5:12", "The answer is 12:5.", False, "inverted"),
    (r"62.5\%", r"\boxed{0.625}", True, "as decimal"),
    (r"62.5\%", r"\boxed{65.2\%}", False, "digits exchanged"),
    (r"40\%", r"\boxed{40 \text{ percent}}", True, "a word for the sign"),
    (r"0.3\%", r"\boxed{\frac{3}{1000}}", True, "less than one percent"),
    (r"0.3\%", r"\boxed{30\%}", False, "a hundred times as much"),
    ("2:3:4", r"\boxed{a:b:c=2:3:4}", True, "three, named"),
]

EXPRESSIONS: list[Row] = [
    (r"11 \sqrt{5} + 11", r"\boxed{11(1+\sqrt5)}", True, "the factor taken out"),
    (
        "x^8 + x^7 + x^6 + x^5 + x^4 + x^3 + x^2 + x + 1",
        r"\boxed{(x^2+x+1)(x^6+x^3+1)}",
        True,
        "factored",
    ),
    (r"\frac{3\sqrt{3}}{4}", r"\boxed{\frac{9}{4\sqrt{3}}}", True, "a root below"),
    (r"\frac{3\sqrt{3}}{4}", r"\boxed{\frac{3\sqrt{4}}{3}}", False, "numbers exchanged"),
    (r"\sin 2x", r"\boxed{2\sin x\cos x}", True, "the double angle"),
    (r"\sin 2x", r"\boxed{\sin^2 x}", False, "a square"),
    (r"\frac{20000}{\pi}", r"\boxed{20000\pi^{-1}}", True, "a negative power"),
    (r"\ln 2-\frac{1}{2}", r"\boxed{\frac12-\ln 2}", False, "the other sign"),
]

CHOICE_STATED: list[Row] = [
    ("B", "Only the second law applies. The correct option is therefore B.", True, "between"),
    ("C", r"The correct answer is $\boxed{C}$.", True, "stated and boxed"),
    ("D", "**Correct answer: (D)**", True, "a label, emphasis and parentheses"),
    ("B", "**Correct answer: (D)**", False, "another letter"),
    ("A", "Mitochondria make most of the ATP.\n\nThe answer is\n\nA", True, "lines between"),
    (
        "C",
        "Answer: B\n\nWait, the units do not match, so I correct this.\n\nAnswer: C",
        True,
        "corrected",
    ),
    (
        "B",
        "Answer: B\n\nWait, the units do not match, so I correct this.\n\nAnswer: C",
        False,
        "given up",
    ),
    ("D", "The answer cannot be D. The answer is A.", False, "excluded"),
]

CHOICE_BEHIND: list[Row] = [
    ("C", "The answer is C, since A would violate the second law.", True, "since"),
    ("A", "The answer is C, since A would violate the second law.", False, "the rejected one"),
    ("B", "Answer: B) Sodium chloride", True, "a parenthesis and the text"),
    ("D", r"\boxed{\text{D. } \frac{1}{2}mv^2}", True, "a formula behind the letter"),
    ("C", "The correct answer is (C) 4.2 kJ, not (B).", True, "a value and a denial"),
    ("B", "The correct answer is (C) 4.2 kJ, not (B).", False, "the denied one"),
    ("G", "The answer is G. I checked every option twice.", True, "a pronoun behind it"),
    ("I", "The answer is G. I checked every option twice.", False, "the pronoun"),
]

CHOICE_BOX_WITHOUT_LETTER: list[Row] = [
    ("C", "It emits $\\boxed{\\Delta E = h\\nu}$.\n\n**Answer:** C", True, "a law in the box"),
    ("E", "It emits $\\boxed{\\Delta E = h\\nu}$.\n\n**Answer:** C", False, "a law's letter"),
    (
        "B",
        "$$\\boxed{\\mathrm{pH} = 4.76}$$\n\nSo the correct answer is (B).",
        True,
        "an acidity in the box",
    ),
    (
        "D",
        r"The rate is $\boxed{k[A][B]}$. The correct option is **D**.",
        True,
        "concentrations in the box",
    ),
    (
        "B",
        r"The rate is $\boxed{k[A][B]}$. The correct option is **D**.",
        False,
        "a concentration's letter",
    ),
    ("F", "$\\boxed{-1.5}$ eV are needed.\n\nThe answer is F.", True, "of ten options"),
    (
        "D",
        "It is $\\boxed{\\sqrt{2}}$ times as long.\n\n### Final Answer\n\n**D**",
        True,
        "heading",
    ),
    (
        "A",
        "It is $\\boxed{\\sqrt{2}}$ times as long.\n\n### Final Answer\n\n**D**",
        False,
        "heading",
    ),
]

CHOICE_LANGUAGES: list[Row] = [
    ("B", "Die richtige Antwort lautet: B", True, "German"),
    ("D", "Die richtige Antwort lautet: B", False, "German, another letter"),
    ("C", "Réponse : C", True, "French, a label that begins with R"),
    ("B", "Por tanto, la opción correcta es la B.", True, "Spanish, option"),
    ("A", "Respuesta: D", False, "Spanish, another letter"),
    ("C", "答え：C", True, "Japanese, a label"),
    ("D", "综上所述，本题选 D。", True, "Chinese, chosen"),
    ("C", "因此，正确答案为 A。", False, "Chinese, another letter"),
]


def _program(name: str, sketch: str, *checks: str) -> str:
    lines = "".join(f"    assert {check}\n" for check in checks)
    return json.dumps(
        {
            "prompt": f'def {name}:\n    """{sketch}"""\n',
            "test": f"def check(f):\n{lines}",
            "entry_point": name.split("(")[0],
        }
    )


_MIRROR = _program("mirrored(s)", "Say whether s is a palindrome.", "f('anna')", "not f('ab')")
_SECOND = _program("second(xs)", "Find the second largest.", "f([4, 9, 7]) == 7", "f([1, 2]) == 1")
_MEAN = _program("mean(xs)", "Average the numbers.", "f([1, 2, 6]) == 3", "f([5]) == 5")

CODE_FENCES: list[Row] = [
    (
        _MIRROR,
        "2) Compare with the reverse:\n\n   ```python\n   def mirrored(s):\n"
        "       back = s[::-1]\n\n       return s == back\n   ```",
        True,
        "in a list, with an empty line",
    ),
    (
        _MIRROR,
        "2) Compare with the reverse:\n\n   ```python\n   def mirrored(s):\n"
        "       back = s[::-1]\n\n       return s != back\n   ```",
        False,
        "in a list, the opposite",
    ),
    (
        _SECOND,
        "```Python\ndef second(xs):\n    return sorted(xs)[-2]\n```",
        True,
        "the language with a capital",
    ),
    (
        _SECOND,
        "* Sort and take:\n\n  ```python\n  import heapq\n\n  def second(xs):\n"
        "      return heapq.nlargest(2, xs)[1]\n  ```\n",
        True,
        "two spaces under a bullet, with an import",
    ),
    (
        _SECOND,
        "* Sort and take:\n\n\t```python\n\tdef second(xs):\n\t    return sorted(xs)[1]\n\t```\n",
        False,
        "a tab under a bullet, the second smallest",
    ),
    (
        _MEAN,
        "```python\ndef total(xs):\n    return sum(xs)\n\n\ndef mean(xs):\n"
        "    return total(xs) / len(xs)\n```",
        True,
        "a helper before it",
    ),
    (
        _MEAN,
        "```python\ndef average(xs):\n    return sum(xs) / len(xs)\n```",
        False,
        "another name",
    ),
    (
        _MEAN,
        "```python\ndef mean(xs):\n    return sum(xs) / len(xs)\n```\n\nIt needs a list with at"
        " least one number.\n\nExample output:\n\n```text\n3.0\n```",
        True,
        "what it prints stands in a second fence",
    ),
]
