r"""Whole responses by kind, written without sight of the grader: (gold, output, right, why).

They measured it before anybody looked at them (370 of 400 right), and are examples since then.

`output` is a whole response, boxed or stated. Lists whose names begin with `CHOICE` are graded as
rule `choice`, with `CODE` as rule `code`, everything else as rule `math` without a question. The
verdicts follow from the meaning of the answers, not from what any grader says of them.
"""

from __future__ import annotations

import json

Row = tuple[str, str, bool, str]

SMALL_CONSTANTS: list[Row] = [
    (r"\frac{1}{2^{99}}", r"The probability is $\boxed{2^{-99}}$.", True, "a negative power"),
    (r"\frac{1}{2^{99}}", r"The probability is $\boxed{\frac{1}{2^{98}}}$.", False, "twice it"),
    (r"\frac{1}{300!}", r"\boxed{\frac{1}{300 \cdot 299!}}", True, "the factorial, one step on"),
    (r"e^{-200}", r"\boxed{\frac{1}{e^{200}}}", True, "a negative power"),
    (r"1-e^{-90}", r"\boxed{1-e^{-91}}", False, "they part after forty digits"),
    (r"1-e^{-90}", r"\boxed{\frac{e^{90}-1}{e^{90}}}", True, "over one denominator"),
    (
        r"\frac{5^{300}-1}{4\cdot 5^{300}}",
        r"\boxed{\frac{1}{4}-\frac{1}{4\cdot 5^{300}}}",
        True,
        "split into two fractions",
    ),
    (r"\frac{5^{300}-1}{4\cdot 5^{300}}", r"\boxed{\frac{1}{4}}", False, "only its limit"),
    (
        "0.123456789012345678901234567890",
        r"\boxed{0.12345678901234567890123456789}",
        True,
        "the last zero left out",
    ),
    (
        "0.123456789012345678901234567891",
        r"\boxed{0.123456789012345678901234567890}",
        False,
        "the thirtieth digit",
    ),
    (r"\frac{1}{10^{20}}", r"\boxed{0}", False, "small is not zero"),
    (r"\frac{1}{\binom{100}{50}}", r"\boxed{\frac{50!\,50!}{100!}}", True, "by factorials"),
    (r"6.626\times 10^{-34}", r"\boxed{6.626\times10^{-33}}", False, "Planck's exponent"),
    (r"6.626\times 10^{-34}", "The answer is 6.626e-34.", True, "as computers write it"),
    (r"\left(\frac{1}{6}\right)^{60}", r"\boxed{6^{-60}}", True, "sixty dice"),
]

EQUATIONS: list[Row] = [
    ("y = 2x + 3", r"The line is $\boxed{2x-y+3=0}$.", True, "implicit"),
    ("y = 2x + 3", r"The line is $\boxed{2x+y=3}$.", False, "the other slope"),
    ("y = -2x", r"\boxed{2x+y=0}", True, "implicit"),
    ("5x - 7y + 11z + 4 = 0", r"\boxed{-10x+14y-22z-8=0}", True, "a negative multiple"),
    ("5x - 7y + 11z + 4 = 0", r"\boxed{5x-7y+11z=4}", False, "a parallel plane"),
    ("x^2+y^2=25", r"\boxed{25=x^2+y^2}", True, "sides exchanged"),
    ("x^2+y^2=25", r"\boxed{x^2+y^2}", False, "half an equation"),
    (r"\frac{x^2}{4}+\frac{y^2}{9}=1", r"\boxed{9x^2+4y^2=36}", True, "without denominators"),
    (r"\frac{x^2}{4}+\frac{y^2}{9}=1", r"\boxed{4x^2+9y^2=36}", False, "axes exchanged"),
    ("(x-2)^2+(y+1)^2=9", r"\boxed{x^2+y^2-4x+2y-4=0}", True, "expanded"),
    ("(x-2)^2+(y+1)^2=9", r"\boxed{(x+2)^2+(y-1)^2=9}", False, "the opposite centre"),
    ("y^2=4x", r"抛物线方程为 $\boxed{x=\frac{y^2}{4}}$。", True, "solved for the other variable"),
    ("y^2=4x", r"抛物线方程为 $\boxed{x^2=4y}$。", False, "turned by a right angle"),
    ("12=n", r"\boxed{12}", True, "the value on the left side"),
    (r"\frac{x^{2}}{2}-y^{2}=1", r"\boxed{x^2-2y^2=2}", True, "a hyperbola times two"),
]

LETTERS: list[Row] = [
    ("2k+2", r"\boxed{2(k+1)}", True, "factored"),
    ("3R^2", r"\boxed{3\,R^{2}}", True, "a thin space"),
    ("3R^2", r"\boxed{3r^2}", False, "a small letter for a capital"),
    ("5r^5", r"\boxed{r^5\cdot 5}", True, "factors exchanged"),
    ("4c", r"The answer is $4c$.", True, "stated"),
    ("4c", r"The answer is $4$.", False, "no unit but a letter"),
    ("x_1+x_2", r"\boxed{x_2+x_1}", True, "terms exchanged"),
    ("x_1+x_2", r"\boxed{x+x}", False, "subscripts lost"),
    ("2f'(x)g(x)", r"\boxed{2g(x)f'(x)}", True, "factors exchanged"),
    ("2f'(x)g(x)", r"\boxed{2f(x)g(x)}", False, "the prime is lost"),
    (r"\frac{11+9a}{20}", r"\boxed{0.55+0.45a}", True, "decimal coefficients"),
    (r"\frac{11+9a}{20}", r"\boxed{\frac{11+9}{20}}", False, "the letter is missing"),
    (r"\frac{mg}{k}", r"\boxed{\frac{Mg}{k}}", False, "a capital for a small letter"),
    (r"v_0 t-\frac12 g t^2", r"\boxed{v_0t-\frac{gt^2}{2}}", True, "a fall"),
    ("p - q", r"\boxed{-q+p}", True, "terms exchanged"),
]

GOLD_READ_IN_PART: list[Row] = [
    (r"5\text{ or }7", r"\boxed{7 \text{ or } 5}", True, "exchanged"),
    (r"5\text{ or }7", r"\boxed{5}", False, "one of two"),
    ("x=2, y=3", r"\boxed{y=3,\ x=2}", True, "equations exchanged"),
    ("x=2, y=3", r"\boxed{x=3,\ y=2}", False, "values exchanged"),
    ("x=2, y=-1, z=4", r"\boxed{x=2,\; y=-1,\; z=4}", True, "wider spaces"),
    ("x=2, y=-1, z=4", r"\boxed{x=2,\; y=1,\; z=4}", False, "a sign in the middle"),
    (
        r"\text{all real numbers except } 3",
        r"\boxed{\text{all real numbers except 3}}",
        True,
        "the number in text mode too",
    ),
    (
        r"\text{all real numbers except } 3",
        r"\boxed{\mathbb{R}\setminus\{3\}}",
        True,
        "in symbols",
    ),
    (r"\text{all real numbers except } 3", r"\boxed{\text{all real numbers}}", False, "cut off"),
    (r"k\pi, k\in\mathbb{Z}", r"\boxed{k\pi\ (k\in\mathbb{Z})}", True, "in parentheses"),
    (r"k\pi, k\in\mathbb{Z}", r"\boxed{x=k\pi,\ k\in\mathbb{Z}}", True, "the unknown named"),
    (r"k\pi, k\in\mathbb{Z}", r"\boxed{n\pi,\ n\in\mathbb{Z}}", True, "another dummy"),
    (r"k\pi, k\in\mathbb{Z}", r"\boxed{2k\pi,\ k\in\mathbb{Z}}", False, "every other one"),
    (
        r"\begin{cases} x & x \ge 0 \\ -x & x < 0 \end{cases}",
        r"\boxed{\begin{cases}x&x\ge0\\-x&x<0\end{cases}}",
        True,
        "spaces",
    ),
    (
        r"\begin{cases} x & x \ge 0 \\ -x & x < 0 \end{cases}",
        r"\boxed{\begin{cases}-x&x\ge0\\x&x<0\end{cases}}",
        False,
        "branches exchanged",
    ),
]

PLAIN_NOTATION: list[Row] = [
    (r"\frac{\pi}{2}", "The answer is pi/2.", True, "plain"),
    ("pi/4", r"\boxed{\frac{\pi}{4}}", True, "the gold answer is plain"),
    ("x**2 + 3*x", r"\boxed{x^2+3x}", True, "stars in the gold answer"),
    ("x**2 + 3*x", r"\boxed{x^3+3x}", False, "another power"),
    (
        "3*cos(2*pi*t/7) - 4",
        r"\boxed{3\cos\left(\frac{2\pi t}{7}\right)-4}",
        True,
        "a wave in plain notation",
    ),
    (
        "3*cos(2*pi*t/7) - 4",
        r"\boxed{3\cos\left(\frac{2\pi t}{7}\right)+4}",
        False,
        "the wave is shifted",
    ),
    (r"\frac{\sqrt{3}}{2}", r"\boxed{sqrt(3)/2}", True, "a plain root"),
    (r"\frac{\sqrt{3}}{2}", r"\boxed{sqrt(3/2)}", False, "the root is longer"),
    (r"2\pi k", r"\boxed{2*pi*k}", True, "two stars"),
    ("e^{2x}", r"\boxed{e^(2x)}", True, "parentheses for braces"),
    (r"\binom{12}{4}", r"\boxed{C(12,4)}", True, "a combination"),
    (r"\frac{1}{x+1}", r"\boxed{1/(x+1)}", True, "a slash and parentheses"),
    (r"\frac{1}{x+1}", r"\boxed{1/x+1}", False, "without the parentheses"),
    (r"(-\infty, 5]", r"\boxed{(-inf, 5]}", True, "infinity abbreviated"),
    (r"(-\infty, 5]", r"\boxed{(-inf, 5)}", False, "the end does not belong"),
]

THOUSANDS: list[Row] = [
    (r"11,\! 111,\! 111,\! 100", r"\boxed{11,111,111,100}", True, "plain commas"),
    (r"11,\! 111,\! 111,\! 100", r"\boxed{1,111,111,100}", False, "a digit less"),
    ("58,500", r"\boxed{58{,}500}", True, "braces round the comma"),
    ("58,500", r"\boxed{58\,500}", True, "a thin space"),
    ("58,500", r"\boxed{58'500}", True, "the Swiss apostrophe"),
    ("58,500", r"\boxed{5,850}", False, "a tenth"),
    ("1,450,000", r"The house is worth \$1\,450\,000, so \boxed{1\,450\,000}.", True, "two spaces"),
    (r"\$32,\!348", r"\boxed{32,348}", True, "the dollar sign left out"),
    (r"\$32,\!348", r"\boxed{\$32,\!384}", False, "digits exchanged"),
    ("1234567.89", r"\boxed{1,234,567.89}", True, "thousands and decimals"),
    ("1234567.89", r"\boxed{1,234,567.98}", False, "decimals exchanged"),
    (r"10,\!080", r"\boxed{10\;080}", True, "a thick space"),
    ("2,125", "The answer is 2,125.", True, "stated with a full stop"),
    ("2,125", r"\boxed{(2, 125)}", False, "a point"),
]

INTERVALS_INEQUALITIES: list[Row] = [
    ("(3,4]", r"\boxed{3<x\le4}", True, "without spaces"),
    ("(3,4]", r"\boxed{4\ge x>3}", True, "the chain reversed"),
    ("(3,4]", r"\boxed{3 < t \leq 4}", True, "another letter"),
    ("(3,4]", r"\boxed{3\le x<4}", False, "the other end"),
    (r"(-\infty, 0]", r"\boxed{0 \geq x}", True, "turned round"),
    (r"(-\infty, 0]", r"\boxed{x<0}", False, "zero belongs"),
    (r"(-\sqrt{3}, \sqrt{3})", r"\boxed{|x|<\sqrt{3}}", True, "as absolute value"),
    (r"(-\infty, 2) \cup (3, \infty)", r"\boxed{x<2 \text{ or } x>3}", True, "or"),
    (r"(-\infty, 2) \cup (3, \infty)", r"\boxed{x\le2 \text{ or } x\ge3}", False, "closed"),
    (r"x \in [-2,7]", r"\boxed{7 \ge x \ge -2}", True, "as chain reversed"),
    (r"x \in [-2,7]", r"\boxed{x \in [-2,7)}", False, "half open"),
    (r"(0,9) \cup (9,36)", r"\boxed{0<x<9 \text{ or } 9<x<36}", True, "a point is cut out"),
    (r"(0,9) \cup (9,36)", r"\boxed{(0,36)}", False, "the point is not cut out"),
    (r"1 \le a < 5", r"\boxed{a\in[1,5)}", True, "from the other side"),
    ("m<-2", r"所以 $m$ 的取值范围是 $\boxed{m∈(-∞,-2)}$", True, "signs as characters"),
]

SET_BUILDER: list[Row] = [
    (r"\{x \mid x>2\}", r"\boxed{(2,\infty)}", True, "as interval"),
    (r"\{x \mid x>2\}", r"\boxed{x>2}", True, "as inequality"),
    (r"\{x \mid x>2\}", r"\boxed{\{x \mid x\ge 2\}}", False, "the end does not belong"),
    (r"\{x \mid 1<x\le 3\}", r"\boxed{(1,3]}", True, "as interval"),
    (r"\{x \mid 1<x\le 3\}", r"\boxed{[1,3)}", False, "the other end"),
    (
        r"\{x \mid 1<x\le 3\}",
        r"\boxed{\left\{x \,\middle|\, 1<x\le 3\right\}}",
        True,
        "sizes",
    ),
    ("(1,3]", r"\boxed{\{x : 1<x\le 3\}}", True, "from the other side"),
    (r"[0,4]", r"\boxed{\{y \in \mathbb{R} \mid 0\le y\le 4\}}", True, "a range of values"),
    (
        r"\{x \in \mathbb{R} \mid x \ne 0\}",
        r"\boxed{(-\infty,0)\cup(0,\infty)}",
        True,
        "as union",
    ),
    (r"\{x \in \mathbb{R} \mid x \ne 0\}", r"\boxed{(0,\infty)}", False, "half of it"),
    (r"\{n\in\mathbb{Z} \mid 1\le n\le 4\}", r"\boxed{\{1,2,3,4\}}", True, "listed"),
    (r"\{n\in\mathbb{Z} \mid 1\le n\le 4\}", r"\boxed{[1,4]}", False, "not integers alone"),
    (r"\{x \mid x<-1\}", r"\boxed{\{t \mid t<-1\}}", True, "another dummy"),
    (
        r"\{x | x<-1 \text{ or } x>3\}",
        r"\boxed{(-\infty,-1)\cup(3,+\infty)}",
        True,
        "two parts",
    ),
    (r"\{x | x<-1 \text{ or } x>3\}", r"\boxed{(-1,3)}", False, "the gap"),
]

FONTS_COLOURS: list[Row] = [
    ("42", r"\boxed{\textcolor{blue}{42}}", True, "blue"),
    ("42", r"\boxed{\color{red}{-42}}", False, "red and wrong"),
    (r"\frac{14}{3}", r"\boxed{\color{red} \frac{14}{3}}", True, "red without braces"),
    ("27", r"\boxed{\mathbf 27}", True, "bold without braces"),
    ("27", r"\boxed{\bf 72}", False, "old bold and wrong"),
    ("27", r"\boxed{{\rm 27}}", True, "old upright"),
    ("27", r"\boxed{\underline{\textbf{27}}}", True, "underlined and bold"),
    ("284", r"\boxed{\mathsf{284}}", True, "without serifs"),
    ("284", r"\boxed{\phantom{-}284}", True, "an invisible minus"),
    ("284", r"\boxed{\phantom{2}84}", False, "an invisible digit"),
    ("284", r"\boxed{\hspace{2mm}284}", True, "a gap whose width is no digit of it"),
    (r"\sqrt{51}", r"\boxed{\bm{\sqrt{51}}}", True, "a bold root, the other package"),
    (r"\sqrt{51}", r"\boxed{\boldsymbol{\sqrt{15}}}", False, "a bold root, another one"),
    (r"3\sqrt{13}", r"\boxed{{\color{blue}3}\sqrt{13}}", True, "one factor in blue"),
    (r"3\sqrt{13}", r"\boxed{{\color{blue}13}\sqrt{3}}", False, "one factor in blue, exchanged"),
]

ORDINALS: list[Row] = [
    ("23", r"\boxed{23^{\text{rd}}}", True, "raised"),
    ("23", r"\boxed{23\text{rd}}", True, "not raised"),
    ("23", r"\boxed{32^{nd}}", False, "digits exchanged"),
    (r"11^{\text{th}}", r"\boxed{11\text{th}}", True, "raised and not"),
    (r"11^{\text{th}}", r"\boxed{12^{\text{th}}}", False, "the next"),
    ("4", r"\boxed{4^{\text{th}} \text{ row}}", True, "and of what"),
    (r"\text{21st}", r"\boxed{21^{st}}", True, "the gold answer in text mode"),
    ("102", r"\boxed{102^{\mathrm{nd}}}", True, "upright"),
    ("102", r"\boxed{120^{\mathrm{th}}}", False, "upright, digits exchanged"),
    ("7", r"\boxed{7^{t}}", False, "a power with a variable"),
    ("100", "The answer is the 100th.", True, "stated"),
    ("3^{rd}", r"\boxed{3}", True, "the gold answer has the ending"),
    ("3^{rd}", r"\boxed{\text{2nd}}", False, "in text mode, the one before"),
]

SEVERAL_BOXES: list[Row] = [
    ("3, 5, 7", r"The primes are \boxed{3}, \boxed{5} and \boxed{7}.", True, "a box for each"),
    ("3, 5, 7", r"The primes are \boxed{3}, \boxed{5} and \boxed{11}.", False, "one wrong"),
    ("3, 5, 7", r"The primes are \boxed{3} and \boxed{5}.", False, "one missing"),
    ("1,-2", r"Hence $x=\boxed{1}$ or $x=\boxed{-2}$.", True, "two roots"),
    ("1,-2", r"Hence $x=\boxed{1}$, $x=\boxed{-2}$ or $x=\boxed{3}$.", False, "one too many"),
    ("-2,1", "The roots are\n\n$$\\boxed{1}$$\n\nand\n\n$$\\boxed{-2}$$", True, "on two lines"),
    ("x=2, y=3", r"So $x=\boxed{2}$ and $y=\boxed{3}$.", True, "the names stand before the boxes"),
    ("x=2, y=3", r"So $x=\boxed{3}$ and $y=\boxed{2}$.", False, "values exchanged"),
    (
        "7",
        r"First I count \boxed{5}. That forgets two cases, so the total is \boxed{7}.",
        True,
        "corrected",
    ),
    (
        "5",
        r"First I count \boxed{5}. That forgets two cases, so the total is \boxed{7}.",
        False,
        "corrected, and the first was right",
    ),
    (
        "42",
        r"Adding up gives \boxed{42}." "\n\n**Final Answer**\n\n" r"\boxed{42}",
        True,
        "said twice",
    ),
    (
        "3",
        "Step 1: the area is $\\boxed{12}$.\n\nStep 2: the height is $\\boxed{4}$.\n\n"
        "Final answer: $\\boxed{3}$",
        True,
        "steps in boxes",
    ),
    (
        "12",
        "Step 1: the area is $\\boxed{12}$.\n\nStep 2: the height is $\\boxed{4}$.\n\n"
        "Final answer: $\\boxed{3}$",
        False,
        "an intermediate value in a box",
    ),
    (
        r"4, \frac{1}{2}",
        r"The greater one is $\boxed{4}$, the smaller one is $\boxed{\frac12}$.",
        True,
        "two values",
    ),
]

HASHES: list[Row] = [
    ("18", "She sells 9 eggs at $2.\n#### $18", True, "a dollar sign"),
    ("18", "She sells 9 eggs at $2.\n####18", True, "no space"),
    ("18", "She sells 9 eggs at $2.\n#### 18 dollars", True, "a unit"),
    ("18", "She sells 9 eggs at $2.\n#### 18.00", True, "cents"),
    ("18", "She sells 9 eggs at $2.\n#### 81", False, "digits exchanged"),
    ("9", "She sells 9 eggs at $2.\n#### 18", False, "a number of the text"),
    ("18", "She sells 9 eggs at $2.\n\n#### 18.\n", True, "a full stop and a line"),
    ("1,875", "4 weeks bring 1,875 in all.\n#### 1875", True, "without the comma"),
    ("40,000", "So he needs 40000.\n#### 40,000", True, "with the comma"),
    ("40,000", "So he needs 4000.\n#### 4,000", False, "a tenth"),
    ("-7", "5 - 12 = -7\n#### 7", False, "the sign is lost"),
    (
        "18",
        "#### Step 1\n16 - 7 = 9\n\n#### Step 2\n" r"9 \cdot 2 = 18, so \boxed{18}",
        True,
        "the hashes are headings and the answer is boxed",
    ),
]

TEXT_BEHIND: list[Row] = [
    ("18", "The answer is 18, since she sells 9 eggs at 2 dollars.", True, "a reason"),
    ("64", "Answer: 64 (eight glasses at 5 dollars and eight at 3).", True, "in parentheses"),
    ("3", "Answer: 64 (eight glasses at 5 dollars and eight at 3).", False, "in parentheses"),
    ("260", "The answer is 260 sheep, as Seattle has 20 of them.", True, "a noun and a clause"),
    ("20", "Therefore, the answer is 20 cups, which leaves 5 cups.", True, "a relative clause"),
    ("5", "Therefore, the answer is 20 cups, which leaves 5 cups.", False, "a relative clause"),
    (
        r"\frac{3}{56}",
        r"The answer is $\frac{3}{56}$, which is about 0.0536.",
        True,
        "an approximation behind the exact value",
    ),
    ("694", "The answer is 694 dollars in total, 50 more than before.", True, "a comparison"),
    ("50", "The answer is 694 dollars in total, 50 more than before.", False, "a comparison"),
    ("10", "The answer is 10, not 12.", True, "another one is denied"),
    ("12", "The answer is 10, not 12.", False, "it is denied"),
    (r"\sqrt{51}", r"The answer is \(\sqrt{51}\), in simplest radical form.", True, "the form"),
    ("2", "The answer is 2 or 3, depending on the sign.", False, "undecided"),
]

HEADINGS_DISPLAY: list[Row] = [
    (
        r"\frac{448}{15625}",
        "### Final Answer\n\n$$\n\\frac{448}{15625}\n$$",
        True,
        "a heading and display mathematics",
    ),
    (
        r"\frac{448}{15625}",
        "### Final Answer\n\n$$\n\\frac{484}{15625}\n$$",
        False,
        "a heading and display mathematics, digits exchanged",
    ),
    ("33", "**Answer:**\n\n33", True, "a bold label and a line between"),
    ("33", "## Answer\n\n**33**", True, "a heading and emphasis"),
    ("33", "## Answer\n\n**32**", False, "a heading and emphasis, another number"),
    ("(6,31,-1)", "**Final Answer**\n\n$(6,31,-1)$", True, "a point"),
    ("(6,31,-1)", "**Final Answer**\n\n$(6,31,1)$", False, "a point, a sign"),
    (
        "x=5",
        "The answer is:\n\\begin{align*}\nx &= 5\n\\end{align*}",
        True,
        "an aligned equation",
    ),
    (
        r"-\frac{35}{9}",
        "The answer is\n$$\n-\\frac{35}{9}\n$$\nas required.",
        True,
        "the sentence goes on behind the display",
    ),
    (
        r"-\frac{35}{9}",
        "The answer is\n$$\n\\frac{35}{9}\n$$\nas required.",
        False,
        "the sentence goes on behind the display, the sign lost",
    ),
    (r"\frac{13}{15}", "答案：\n\n$$\\frac{13}{15}$$", True, "a Chinese label"),
    ("90", "Therefore, the final answer is:\n\n> 90", True, "a quotation"),
]

STATED_LANGUAGES: list[Row] = [
    ("42", "Zusammen sind es 42. Die Antwort ist 42.", True, "German"),
    (r"\frac{3}{56}", r"Die endgültige Antwort ist $\frac{3}{56}$.", True, "German, final"),
    ("42", "Zusammen sind es 42. Die Antwort ist 24.", False, "German, another number"),
    ("27", "Donc la réponse est 27.", True, "French"),
    ("284", "Réponse : 284", True, "French, a label"),
    ("284", "Réponse : 248", False, "French, digits exchanged"),
    (r"\frac{14}{3}", r"Por lo tanto, la respuesta final es $\frac{14}{3}$.", True, "Spanish"),
    ("720", "計算すると、答えは720です。", True, "Japanese"),
    (r"\frac{3}{2}", r"したがって、答えは $\frac{2}{3}$ です。", False, "Japanese, inverted"),
    (r"\frac{243}{625}", r"故答案为：$\frac{243}{625}$。", True, "Chinese, as textbooks end"),
    ("-125", "最终答案为：$125$", False, "Chinese, the sign is lost"),
    ("12", "Portanto, a resposta é 12.", True, "Portuguese"),
    ("12", "Resposta final: 21", False, "Portuguese, digits exchanged"),
    ("23", "Quindi la risposta è 23.", True, "Italian"),
    ("23", "La risposta finale è $32$.", False, "Italian, digits exchanged"),
]

UNTERMINATED: list[Row] = [
    ("42", r"Therefore we get $\boxed{42", False, "cut off behind the number"),
    (
        r"\frac{14}{3}",
        r"Therefore we get $\boxed{\frac{14}{3}",
        False,
        "the outer brace is missing",
    ),
    ("4", r"I get \boxed{4}. Let me put that down properly: \boxed{4", False, "no stand-in"),
    ("7", r"I get \boxed{7}. No, I forgot two of them: \boxed{9", False, "the earlier box"),
    ("9", r"I get \boxed{7}. No, I forgot two of them: \boxed{9", False, "the cut box"),
    ("5", r"So it is \boxed{5}. Once more: \boxed{", False, "an empty beginning"),
    (
        r"\{1\pm\sqrt{5},-2\}",
        r"The roots are $\boxed{\{1\pm\sqrt{5},-2\}",
        False,
        "the escaped brace closes no box",
    ),
    (
        r"\{1\pm\sqrt{5},-2\}",
        r"The roots are $\boxed{\{1\pm\sqrt{5},-2\}}$",
        True,
        "closed",
    ),
    ("18", r"She makes \boxed{18} dollars every day.", True, "text behind a closed box"),
    (
        r"\left( 3, \frac{\pi}{2} \right)",
        r"\boxed{\left(3,\frac{\pi}{2}\right)}",
        True,
        "nested and closed",
    ),
    ("2220", "$$\\boxed{2220}$$\n\nThis is the length that was ask", True, "cut off after it"),
    ("2220", "$$\\boxed{2202}$$\n\nThis is the length that was ask", False, "another number"),
]

UNITS_TEXT: list[Row] = [
    ("9", r"\boxed{\text{9 different teams}}", True, "number and noun in text mode"),
    ("3", r"\boxed{\text{three}}", True, "a numeral"),
    ("3", r"\boxed{\text{thirteen}}", False, "another numeral"),
    (r"\frac{3}{4}", r"\boxed{¾}", True, "one character"),
    (r"\frac{3}{2}", r"\boxed{1½}", True, "mixed, one character"),
    (r"\frac{1}{4}", r"\boxed{½}", False, "another character"),
    (r"5.4 \text{ cents}", r"\boxed{5.4¢}", True, "the sign of a cent"),
    (r"864 \mbox{ inches}^2", r"\boxed{864\text{ in}^2}", True, "abbreviated"),
    (r"864 \mbox{ inches}^2", r"\boxed{864\text{ feet}^2}", False, "another unit"),
    (r"\frac{270}7\text{ degrees}", r"\boxed{\frac{270}{7}^\circ}", True, "the sign"),
    (r"\frac{1}{2}", r"\boxed{\cos 30^\circ}", False, "another function"),
    (r"\sqrt{3}", r"\boxed{\tan 60^{\circ}}", True, "degrees with braces"),
    (r"9.8\text{ m/s}^2", r"\boxed{9.8\ \mathrm{m\,s^{-2}}}", True, "a negative power"),
    (r"60\text{ N}", r"\boxed{60\ \mathrm{J}}", False, "a force is no energy"),
]

BASES: list[Row] = [
    ("204_5", r"\boxed{204_{\text{five}}}", True, "the base in words"),
    ("204_5", r"\boxed{204 \text{ (base 5)}}", True, "in parentheses"),
    ("204_5", r"\boxed{204 \text{ base } 5}", True, "without parentheses"),
    ("204_5", r"\boxed{204 \text{ base } 6}", False, "another base"),
    ("4210_{5}", r"\boxed{4210_5}", True, "without braces"),
    ("4210_{5}", r"\boxed{4201_5}", False, "digits exchanged"),
    ("0.11_2", r"\boxed{0.11_{2}}", True, "a point"),
    ("0.11_2", r"\boxed{0.11_{3}}", False, "a point, another base"),
    ("2516_8", r"\boxed{2516_{(8)}}", True, "the base in parentheses"),
    ("2516_8", r"\boxed{2516_{16}}", False, "another base"),
    ("A3_{16}", r"\boxed{\text{A3}_{16}}", True, "a letter as digit"),
    ("A3_{16}", r"\boxed{3A_{16}}", False, "a letter as digit, exchanged"),
    ("4343_6", "The answer is $4343_6$.", True, "stated"),
]

MATRICES_VECTORS: list[Row] = [
    (
        r"\begin{pmatrix} -2 \\ -14 \\ -7 \end{pmatrix}",
        r"\boxed{(-2,-14,-7)}",
        True,
        "a vector on one line",
    ),
    (
        r"\begin{pmatrix} -2 \\ -14 \\ -7 \end{pmatrix}",
        r"\boxed{\langle -2,-14,-7\rangle}",
        True,
        "angle brackets",
    ),
    (
        r"\begin{pmatrix} -2 \\ -14 \\ -7 \end{pmatrix}",
        r"\boxed{\langle -2,-7,-14\rangle}",
        False,
        "angle brackets, entries exchanged",
    ),
    (
        r"\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}",
        r"\boxed{\begin{pmatrix}-\frac13\\[2pt] \frac23\\[2pt] \frac53\end{pmatrix}}",
        True,
        "fractions and wider rows",
    ),
    (
        r"\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}",
        r"\boxed{\begin{pmatrix}-\frac13\\ \frac53\\ \frac23\end{pmatrix}}",
        False,
        "entries exchanged",
    ),
    (
        r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}",
        r"\boxed{-\begin{pmatrix}1&0\\0&1\end{pmatrix}}",
        True,
        "the sign before it",
    ),
    (
        r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}",
        r"\boxed{\begin{pmatrix}1&0\\0&1\end{pmatrix}}",
        False,
        "the sign is lost",
    ),
    (
        r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}",
        r"\boxed{\begin{pmatrix}0.2\\-3.6\end{pmatrix}}",
        True,
        "decimals",
    ),
    (
        r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}",
        r"\boxed{\frac15\begin{pmatrix}1\\-18\end{pmatrix}}",
        True,
        "a factor before it",
    ),
    (
        r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}",
        r"\boxed{\frac15\begin{pmatrix}1\\18\end{pmatrix}}",
        False,
        "a factor before it, a sign",
    ),
    (r"\langle 3, -1\rangle", r"\boxed{3\mathbf{i}-\mathbf{j}}", True, "unit vectors"),
    (
        r"\begin{pmatrix} 2 & -1 \\ 0 & 3 \end{pmatrix}",
        r"\boxed{\left[\begin{array}{cc}2&-1\\0&3\end{array}\right]}",
        True,
        "an array in brackets",
    ),
    (
        r"\begin{pmatrix} 2 & -1 \\ 0 & 3 \end{pmatrix}",
        r"\boxed{\left[\begin{array}{cc}2&0\\-1&3\end{array}\right]}",
        False,
        "an array in brackets, transposed",
    ),
]

PLUS_MINUS: list[Row] = [
    (r"1 \pm \sqrt{19}", r"\boxed{1 ± √19}", True, "characters"),
    (r"1 \pm \sqrt{19}", r"\boxed{x = 1\pm\sqrt{19}}", True, "the unknown named"),
    (r"1 \pm \sqrt{19}", r"\boxed{\pm 1+\sqrt{19}}", False, "the sign moved"),
    (r"3 \pm 2 \sqrt{2}", r"\boxed{3-2\sqrt2 \text{ and } 3+2\sqrt2}", True, "and"),
    (r"3 \pm 2 \sqrt{2}", r"\boxed{3\pm\sqrt{8}}", True, "not simplified"),
    (r"3 \pm 2 \sqrt{2}", r"\boxed{\pm(3+2\sqrt{2})}", False, "the sign is of the whole"),
    (r"\pm 12", r"\boxed{12 \text{ or } -12}", True, "or"),
    (r"\pm 12", r"\boxed{12}", False, "only plus"),
    ("5, -5", r"\boxed{±5}", True, "from the other side"),
    (r"\{1\pm\sqrt{5},-2\}", r"\boxed{-2,\ 1+\sqrt5,\ 1-\sqrt5}", True, "written out"),
    (r"\{1\pm\sqrt{5},-2\}", r"\boxed{\{1\pm\sqrt5,\ 2\}}", False, "a sign"),
    (r"-1 \pm 2i", r"\boxed{-1+2i,\ -1-2i}", True, "complex roots"),
    (r"-1 \pm 2i", r"\boxed{1\pm 2i}", False, "complex roots, a sign"),
]

SETS_TUPLES: list[Row] = [
    ("3, 5, 7", r"\boxed{7, 5, 3}", True, "from the greatest"),
    ("3, 5, 7", r"\boxed{3, 5, 7, 9}", False, "one too many"),
    (r"\{0, 4\}", r"\boxed{\{0,4,4\}}", True, "a set has no repetition"),
    ("(1,2),(2,1)", r"\boxed{\{(2,1),(1,2)\}}", True, "as set, exchanged"),
    ("(1,2),(2,1)", r"\boxed{(1,2),(1,2)}", False, "one twice, the other missing"),
    (r"\{(0,0),(1,1)\}", r"\boxed{(0,0) \text{ and } (1,1)}", True, "and"),
    (r"\{\{1\},\{1,2\}\}", r"\boxed{\{\{2,1\},\{1\}\}}", True, "sets of sets"),
    (r"\{\{1\},\{1,2\}\}", r"\boxed{\{1,\{1,2\}\}}", False, "an element is no set"),
    ("((1,2),(3,4))", r"\boxed{((3,4),(1,2))}", False, "a pair of pairs has an order"),
    ("(a,b,c)=(2,3,6)", r"\boxed{(2,3,6)}", True, "the names left out"),
    ("(a,b,c)=(2,3,6)", r"\boxed{(2,6,3)}", False, "the names left out, exchanged"),
    ("(15,-29)", r"\boxed{(x,y)=(15,-29)}", True, "the names added"),
    ("(1,-16,-4,43)", "The final answer is $(1, -16, -4, 43)$.", True, "four of them, stated"),
]

CONGRUENCE_MISC: list[Row] = [
    (r"3 \pmod 7", r"\boxed{x\equiv 3\pmod 7}", True, "the unknown named"),
    (r"3 \pmod 7", r"\boxed{3 \pmod 8}", False, "another modulus"),
    ("6", r"\boxed{6\pmod{11}}", True, "the modulus is the question's"),
    ("6", r"\boxed{5\pmod{11}}", False, "another residue"),
    (r"\emptyset", r"\boxed{\{\}}", True, "braces with nothing in them"),
    (r"\emptyset", r"\boxed{0}", False, "a number"),
    (r"\text{DNE}", r"\boxed{\text{does not exist}}", True, "written out"),
    (r"\text{undefined}", r"\boxed{\textbf{undefined}}", True, "bold"),
    (r"\text{no solution}", r"\boxed{\text{no solutions}}", True, "a plural"),
    (r"\text{no solution}", r"\boxed{\text{one solution}}", False, "one"),
    ("True", r"\boxed{\text{True}}", True, "text mode"),
    (r"\text{Navin}", "The answer is Navin.", True, "a name, stated"),
    (r"\text{ellipse}", r"\boxed{\text{an ellipse}}", True, "an article"),
    (r"\text{ellipse}", r"\boxed{\text{circle}}", False, "another curve"),
]

PERCENT_RATIO: list[Row] = [
    ("3:4", r"\boxed{\frac{3}{4}}", True, "as fraction"),
    ("3:4", r"\boxed{3 \text{ to } 4}", True, "in words"),
    ("3:4", r"\boxed{\frac{4}{3}}", False, "inverted"),
    (r"\frac{2}{5}", r"\boxed{2:5}", True, "from the other side"),
    (r"25\%", r"\boxed{\frac14}", True, "as fraction"),
    (r"25\%", r"\boxed{2.5\%}", False, "a tenth"),
    ("1:2:3", r"\boxed{1:3:2}", False, "three, exchanged"),
    (r"12.5\%", r"\boxed{12\frac12\%}", True, "a mixed number"),
    (r"\frac{1}{3}", r"\boxed{33\frac{1}{3}\%}", True, "a mixed number of percent"),
    (r"\frac{1}{3}", r"\boxed{33\%}", False, "rounded"),
    (r"\sqrt{2}:1", r"\boxed{\sqrt2 : 1}", True, "a root"),
    (r"\sqrt{2}:1", r"\boxed{1:\sqrt{2}}", False, "a root, inverted"),
]

EXPRESSIONS: list[Row] = [
    ("(a+5)(b+2)", r"\boxed{ab+5a+2b+10}", False, "expanded wrongly"),
    (r"\cot x", r"\boxed{\frac{\cos x}{\sin x}}", True, "by definition"),
    ("8n^2 + 4n + 1", r"\boxed{(2n+1)^2+4n^2}", True, "as sum of squares"),
    (r"\log_2 3", r"\boxed{\frac{\ln 3}{\ln 2}}", True, "another base"),
    (r"\log_2 3", r"\boxed{\log_3 2}", False, "exchanged"),
    ("1+274i", r"\boxed{1+274\mathrm{i}}", True, "the unit upright"),
    ("|x-3|", r"\boxed{|3-x|}", True, "exchanged in the bars"),
    ("|x-3|", r"\boxed{x-3}", False, "without the bars"),
    (r"\binom{n}{2}", r"\boxed{\frac{n(n-1)}{2}}", True, "written out"),
    (r"\binom{n}{2}", r"\boxed{\frac{n(n+1)}{2}}", False, "written out wrongly"),
    (r"\sqrt[3]{16}", r"\boxed{2\sqrt[3]{2}}", True, "simplified"),
    (r"\sqrt[3]{16}", r"\boxed{2\sqrt{2}}", False, "the index is lost"),
    ("x^5 - x^4 + x^3 - x^2 + x - 1", r"\boxed{(x-1)(x^4+x^2+1)}", True, "factored"),
    (r"\frac{e^x+e^{-x}}{2}", r"\boxed{\cosh x}", True, "a hyperbolic function"),
    (r"e^{i\pi/3}", r"\boxed{\frac12+\frac{\sqrt3}{2}i}", True, "in Cartesian form"),
    (r"e^{i\pi/3}", r"\boxed{\frac{\sqrt3}{2}+\frac12 i}", False, "parts exchanged"),
]

CHOICE_STATED: list[Row] = [
    ("B", "The charge doubles, so the force doubles.\n\nAnswer B", True, "without a colon"),
    ("C", "Entropy grows. The answer is therefore C.", True, "a word between"),
    ("B", "Hence the correct choice is **B**.", True, "choice, in emphasis"),
    ("A", "Hence the correct choice is **B**.", False, "choice, another letter"),
    ("D", "The best response is option D.", True, "option"),
    ("D", "So the correct option is (A).", False, "option, another letter"),
    ("H", "The answer is (H).", True, "of ten options"),
    ("H", "The answer is (I).", False, "of ten options, another letter"),
    ("A", "**Final Answer: A**", True, "a label in emphasis"),
    ("B", r"The correct answer is \(\textbf{B}\).", True, "in mathematics"),
    ("A", "A looks right, but its sign is wrong. The answer is thus D.", False, "rejected"),
    ("D", "A looks right, but its sign is wrong. The answer is thus D.", True, "kept"),
    ("C", "It is either B or C.\n\nThe answer must be C.", True, "must be"),
    ("B", "It is either B or C.\n\nThe answer must be C.", False, "must be, the other"),
]

CHOICE_BEHIND: list[Row] = [
    ("B", "The answer is B because the enzyme is denatured above 60 °C.", True, "because"),
    ("C", "The answer is B because the enzyme is denatured above 60 °C.", False, "a unit's letter"),
    ("D", "The answer must be D and not B, whose sign is wrong.", True, "another is denied"),
    ("B", "The answer must be D and not B, whose sign is wrong.", False, "it is denied"),
    ("A", "Answer: A, as B and C violate conservation of charge.", True, "two are rejected"),
    ("B", "The answer is B. A magnet always has two poles.", True, "an article begins the text"),
    ("A", "The answer is B. A magnet always has two poles.", False, "the article"),
    ("ACD", "Answer: (ACD)", True, "three in parentheses"),
    ("ACD", r"\boxed{(ABD)}", False, "three in parentheses, one wrong"),
    ("E", r"\boxed{\text{(E) } 6\sqrt{2}}", True, "letter and value in text mode"),
    (
        "C",
        "A and B are too small and D has the wrong unit, leaving only (C).",
        True,
        "what is left",
    ),
    (
        "D",
        "A and B are too small and D has the wrong unit, leaving only (C).",
        False,
        "what is not left",
    ),
    ("B", r"\boxed{B.\ 3.0\times 10^{8}\text{ m/s}}", True, "a value behind the letter"),
    ("E", "The answer is E: none of these.", True, "a colon and the text"),
]

CHOICE_BOX_WITHOUT_LETTER: list[Row] = [
    (
        "D",
        r"The heat is $\boxed{3.2\times10^{5}\ \text{J}}$." "\n\n**Answer: D**",
        True,
        "a quantity in the box",
    ),
    (
        "B",
        r"The heat is $\boxed{3.2\times10^{5}\ \text{J}}$." "\n\n**Answer: D**",
        False,
        "a quantity in the box, another letter",
    ),
    (
        "B",
        r"So $\boxed{\frac{1}{2}}$ remains. The correct option is (B).",
        True,
        "a fraction in the box",
    ),
    (
        "C",
        r"So $\boxed{\frac{1}{2}}$ remains. The correct option is (B).",
        False,
        "a fraction in the box, another letter",
    ),
    ("A", "$$\\boxed{x = 7}$$\n\nThe answer is A.", True, "an equation in the box"),
    ("C", "$\\boxed{42}$\n\nTherefore the answer is **C**.", True, "a number in the box"),
    ("D", "$\\boxed{42}$\n\nTherefore the answer is **C**.", False, "a number, another letter"),
    ("D", "\\boxed{\\text{mitosis}}\n\nAnswer: D", True, "a word in the box"),
    ("B", r"The acceleration is $\boxed{9.8}$ metres per second squared.", False, "no letter"),
    ("A", "Answer: B would need more energy.\n\n\\boxed{A}", True, "the box holds a letter"),
    ("B", "Answer: B would need more energy.\n\n\\boxed{A}", False, "the box holds another letter"),
    (
        "J",
        "$\\boxed{12\\ \\text{kN}}$ at the support.\n\nThe answer is (J).",
        True,
        "of ten options",
    ),
]

CHOICE_LANGUAGES: list[Row] = [
    ("C", "Die richtige Antwort ist C.", True, "German"),
    ("C", "Antwort: C", True, "German, a label that begins with A"),
    ("A", "Antwort: C", False, "German, the label's own letter"),
    ("B", "La bonne réponse est B.", True, "French"),
    ("B", "La bonne réponse est la D.", False, "French, another letter"),
    ("A", "La respuesta correcta es A.", True, "Spanish"),
    ("C", "La respuesta correcta es la opción C.", True, "Spanish, option"),
    ("D", "したがって、正解はDです。", True, "Japanese"),
    ("A", "答えは(B)です。", False, "Japanese, another letter"),
    ("C", "A、B、D三项均不符合题意，故选：C。", True, "Chinese, as textbooks end"),
    ("D", "A、B、D三项均不符合题意，故选：C。", False, "Chinese, rejected"),
    ("B", "所以正确答案是选项B。", True, "Chinese, option"),
    ("D", "A resposta correta é a letra D.", True, "Portuguese: the article is no option"),
    ("A", "A resposta correta é a letra D.", False, "Portuguese: the article"),
    ("C", "La risposta corretta è la C.", True, "Italian"),
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


_CUBE = _program("cube(n)", "Raise to the third power.", "f(2) == 8", "f(-3) == -27")
_VOWELS = _program("vowels(s)", "Count a, e, i, o, u.", "f('banana') == 3", "f('xyz') == 0")
_EVENS = _program("evens(xs)", "Keep the even numbers.", "f([1, 2, 4]) == [2, 4]", "f([]) == []")

CODE_FENCES: list[Row] = [
    (
        _CUBE,
        "1. Multiply:\n\n   ```python\n   def cube(n):\n       return n ** 3\n   ```",
        True,
        "in a list",
    ),
    (
        _CUBE,
        "1. Multiply:\n\n   ```python\n   def cube(n):\n       return n * 3\n   ```",
        False,
        "in a list, a wrong one",
    ),
    (_CUBE, "~~~python\ndef cube(n):\n    return n * n * n\n~~~", True, "tildes"),
    (_CUBE, "~~~python\ndef cube(n):\n    return n * n\n~~~", False, "tildes, a square"),
    (
        _VOWELS,
        "- Answer:\n    ```py\n    def vowels(s):\n        return sum(c in 'aeiou' for c in s)\n"
        "    ```\n",
        True,
        "four spaces under a bullet",
    ),
    (
        _VOWELS,
        "- Answer:\n    ```py\n    def vowels(s):\n        return sum(c in 'aei' for c in s) + 1\n"
        "    ```\n",
        False,
        "four spaces under a bullet, a wrong program",
    ),
    (
        _VOWELS,
        "Here:\n\n```\ndef vowels(s):\n    total = 0\n    for c in s:\n        if c in 'aeiou':\n"
        "            total += 1\n    return total\n```\n\nIt visits each letter once.",
        True,
        "no language, and text behind it",
    ),
    (
        _EVENS,
        "1. Idea: filter.\n2. Program:\n\n\t```python\n\tdef evens(xs):\n"
        "\t    return [x for x in xs if x % 2 == 0]\n\t```",
        True,
        "a tab before each line",
    ),
    (
        _EVENS,
        "````python\ndef evens(xs):\n    return [x for x in xs if x % 2 == 0]\n````",
        True,
        "four backticks",
    ),
    (
        _EVENS,
        "````python\ndef evens(xs):\n    return [x for x in xs if x % 2 == 1]\n````",
        False,
        "four backticks, the odd ones",
    ),
    (
        _EVENS,
        "  ~~~\n  def evens(xs):\n      return list(filter(lambda x: x % 2 == 0, xs))\n  ~~~",
        True,
        "tildes behind two spaces",
    ),
    (
        _CUBE,
        "First try:\n```python\ndef cube(n):\n    return n * 3\n```\nThat triples. Corrected:\n"
        "```python\ndef cube(n):\n    return n ** 3\n```",
        True,
        "corrected",
    ),
]
