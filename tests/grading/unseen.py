r"""Whole responses by kind, as `examined`, that nobody looked at while the grader was built.

Whoever improves the grader on them has to write others to measure it by.
"""

from __future__ import annotations

import json

Row = tuple[str, str, bool, str]

SMALL_CONSTANTS: list[Row] = [
    (
        r"9.109\times 10^{-31}",
        r"The rest mass is $\boxed{9.109 \times 10^{-31}\ \text{kg}}$.",
        True,
        "a unit added",
    ),
    (
        r"9.109\times 10^{-31}",
        r"The rest mass is $\boxed{9.109 \times 10^{-28}\ \text{kg}}$.",
        False,
        "the exponent belongs to grams",
    ),
    (
        r"\frac{1}{2^{64}-1}",
        r"Each grain has the chance $\boxed{\frac{1}{18446744073709551615}}$.",
        True,
        "computed",
    ),
    (
        r"\frac{1}{2^{64}-1}",
        r"Each grain has the chance $\boxed{\frac{1}{2^{64}}}$.",
        False,
        "one grain too many",
    ),
    (
        r"\frac{1}{52!}",
        "All orders are equally likely.\n\n" r"$$\boxed{(52!)^{-1}}$$",
        True,
        "a negative power of a factorial",
    ),
    (
        r"\left(\frac{5}{6}\right)^{100}",
        r"No six in 100 rolls: $\boxed{\frac{5^{100}}{6^{100}}}$",
        True,
        "the power in both parts",
    ),
    (
        r"\left(\frac{5}{6}\right)^{100}",
        r"No six in 100 rolls: $\boxed{\left(\frac{5}{6}\right)^{99}}$",
        False,
        "a roll too few",
    ),
    (
        r"1.38 \times 10^{-23}",
        r"The final answer is $1.38 \times 10^{-23}$ J/K.",
        True,
        "stated, with a unit",
    ),
]

EQUATIONS: list[Row] = [
    (
        r"y = -\frac{2}{5}x + 4",
        r"In standard form the line is $\boxed{2x + 5y = 20}$.",
        True,
        "standard form",
    ),
    (
        r"y = -\frac{2}{5}x + 4",
        r"In standard form the line is $\boxed{2x - 5y = 20}$.",
        False,
        "standard form, a sign",
    ),
    (
        "(x+3)^2+(y-2)^2=16",
        r"Expanding gives $\boxed{x^2+y^2+6x-4y-3=0}$.",
        True,
        "expanded",
    ),
    (
        "(x+3)^2+(y-2)^2=16",
        r"So the circle is $\boxed{(x+3)^2+(y-2)^2=4}$.",
        False,
        "the radius is not squared",
    ),
    ("x=-1", r"The directrix is $\boxed{x + 1 = 0}$.", True, "all on one side"),
    ("x+y-3=0", r"所以直线 $l$ 的方程为 $\boxed{y=-x+3}$。", True, "solved for y, in Chinese"),
    (
        r"F = \frac{9}{5}C + 32",
        r"Solving for $C$ gives $\boxed{C = \frac{5}{9}(F - 32)}$.",
        True,
        "solved for the other temperature",
    ),
    (
        r"\frac{x^2}{25}+\frac{y^2}{16}=1",
        r"故椭圆的方程为 $\boxed{\frac{x^2}{25}+\frac{y^2}{9}=1}$。",
        False,
        "half the focal distance taken for the half axis",
    ),
]

LETTERS: list[Row] = [
    (
        r"\frac{\sqrt{3}}{4}s^2",
        r"Its area is $\boxed{\frac{s^2\sqrt{3}}{4}}$.",
        True,
        "the square in the numerator",
    ),
    (
        r"\frac{\sqrt{3}}{4}s^2",
        r"Its area is $\boxed{\frac{\sqrt{3}}{4}}$.",
        False,
        "only for side one",
    ),
    (r"\frac{1}{2}mv^2", r"The work done is $\boxed{\frac{mv^2}{2}}$.", True, "one fraction"),
    (r"\frac{1}{2}mv^2", r"The work done is $\boxed{mv^2}$.", False, "the half is lost"),
    ("2^{n-1}", r"There are $\boxed{\frac{2^n}{2}}$ such subsets.", True, "a quotient"),
    ("n(n+1)", r"The number of squares is $\boxed{n^2+n}$.", True, "expanded"),
    (
        r"\sqrt{\frac{2gh}{3}}",
        r"The speed at the bottom is $\boxed{\sqrt{\frac{2g}{3h}}}$.",
        False,
        "the height stands below",
    ),
    (
        r"\frac{a+b}{2}",
        r"Therefore, the answer is $\frac{1}{2}(a+b)$.",
        True,
        "the half before it",
    ),
]

GOLD_READ_IN_PART: list[Row] = [
    (
        r"(a,b) = (3,1) \text{ or } (1,3)",
        r"Hence $\boxed{(a,b) = (1,3) \text{ or } (3,1)}$.",
        True,
        "pairs in another order",
    ),
    (r"(a,b) = (3,1) \text{ or } (1,3)", r"Hence $\boxed{(3,1)}$.", False, "one of two pairs"),
    (
        r"\text{all primes } p \equiv 1 \pmod 4",
        r"The answer is $\boxed{\text{all primes } p\equiv 1 \pmod{4}}$.",
        True,
        "braces and spaces",
    ),
    (
        r"\text{all primes } p \equiv 1 \pmod 4",
        r"The answer is $\boxed{\text{all primes } p\equiv 3 \pmod{4}}$.",
        False,
        "the other primes",
    ),
    (
        r"f(x)=x \text{ and } f(x)=-x",
        r"Both work, so the solutions are $\boxed{f(x)=-x \text{ and } f(x)=x}$.",
        True,
        "functions in another order",
    ),
    (
        r"f(x)=x \text{ and } f(x)=-x",
        r"Only one works, so the solution is $\boxed{f(x)=x}$.",
        False,
        "one of two functions",
    ),
    (
        r"\left[2k\pi, 2k\pi+\pi\right], k\in\mathbb{Z}",
        r"函数的单调递减区间是 $\boxed{[2k\pi,\ 2k\pi+\pi]\ (k\in\mathbb{Z})}$。",
        True,
        "a family of intervals, in parentheses",
    ),
    (
        r"k = 3 \text{ or } k = -1",
        r"The discriminant vanishes for $\boxed{k=-1 \text{ or } 3}$.",
        True,
        "the name said once",
    ),
]

PLAIN_NOTATION: list[Row] = [
    (r"\frac{3\sqrt{3}}{4}", "**Answer:** 3√3/4", True, "a root as a character"),
    (r"\frac{3\sqrt{3}}{4}", "**Answer:** 3√3/2", False, "a root as a character, twice it"),
    ("x^2+2x-15", "So the answer is x² + 2x − 15.", True, "a raised two and a long minus"),
    (
        "2*pi*sqrt(L/g)",
        r"The period is $\boxed{2\pi\sqrt{\frac{L}{g}}}$.",
        True,
        "the gold answer is plain",
    ),
    (
        "2*pi*sqrt(L/g)",
        r"The period is $\boxed{2\pi\sqrt{\frac{g}{L}}}$.",
        False,
        "the quotient is inverted",
    ),
    (r"-\frac{\pi}{6}", "The final answer is -π/6.", True, "pi as a character"),
    ("y = C*exp(-2*x)", r"The general solution is $\boxed{y = Ce^{-2x}}$.", True, "an exponential"),
    (
        "(x+2)/(x-3)",
        r"The inverse is $\boxed{\frac{x-2}{x+3}}$.",
        False,
        "signs exchanged",
    ),
]

THOUSANDS: list[Row] = [
    (
        "57500",
        "Therefore, her annual salary is **$57,500**.\n\n" r"\boxed{57,500}",
        True,
        "a price before the box",
    ),
    ("57500", r"Her annual salary is $\boxed{57,050}$ dollars.", False, "digits exchanged"),
    (
        "2{,}598{,}960",
        r"The number of hands is $\boxed{\binom{52}{5}}$.",
        True,
        "a binomial coefficient",
    ),
    ("2{,}598{,}960", "52 choose 5 is 2598960.\n\nThe answer is 2598960.", True, "no commas"),
    ("2{,}598{,}960", r"$\boxed{2{,}589{,}960}$", False, "digits exchanged"),
    ("3159.0", r"Thus the sum is $\boxed{3{,}159}$.", True, "the gold answer has a decimal zero"),
    ("250000", "After 5 years the account holds that much. The answer is $250,000.", True, "price"),
    ("1,296", r"$6^4 = \boxed{12,960}$", False, "ten times as much"),
]

INTERVALS_INEQUALITIES: list[Row] = [
    (
        r"\left[ \frac{\pi^2}{8}, \frac{5 \pi^2}{4} \right]",
        r"So the range is $\boxed{\frac{\pi^2}{8} \le f(x) \le \frac{5\pi^2}{4}}$.",
        True,
        "a function's values",
    ),
    ("(-1,6)", r"The product is negative for $\boxed{-1 < x < 6}$.", True, "a chain"),
    (
        "(-1,6)",
        r"The product is negative for $\boxed{x < -1 \text{ or } x > 6}$.",
        False,
        "the outside",
    ),
    (
        r"a > \frac{1}{e}",
        r"综上，实数 $a$ 的取值范围是 $\boxed{\left(\frac{1}{e},+\infty\right)}$。",
        True,
        "as interval, in Chinese",
    ),
    (
        r"a > \frac{1}{e}",
        r"综上，实数 $a$ 的取值范围是 $\boxed{\left[\frac{1}{e},+\infty\right)}$。",
        False,
        "as interval, the end does not belong",
    ),
    (
        r"[-2, 1) \cup (1, 4]",
        r"The domain is $\boxed{-2 \le x < 1 \text{ or } 1 < x \le 4}$.",
        True,
        "two chains",
    ),
    (
        r"x \le 0 \text{ or } x \ge 5",
        r"In interval notation: $\boxed{(-\infty, 0] \cup [5, \infty)}$",
        True,
        "a union",
    ),
    (
        r"x \le 0 \text{ or } x \ge 5",
        r"In interval notation: $\boxed{(-\infty, 0) \cup (5, \infty)}$",
        False,
        "a union, the ends are left out",
    ),
]

SET_BUILDER: list[Row] = [
    (r"\{x \mid x\leq 1\}", r"因此 $A\cup B=\boxed{(-\infty,1]}$。", True, "as interval"),
    (
        r"\{x \mid x\leq 1\}",
        r"因此 $A\cup B=\boxed{\{x\mid x\geq 1\}}$。",
        False,
        "the other side",
    ),
    (
        r"\{x|-1<x<4\}",
        r"The solution set is $\boxed{\{x : -1 < x < 4\}}$.",
        True,
        "a colon for the bar",
    ),
    (
        r"\{x|-1<x<4\}",
        r"The solution set is $\boxed{\{x \mid -1 < x \leq 4\}}$.",
        False,
        "the end does not belong",
    ),
    (
        r"\{0,1,2\}",
        r"$A \cap B = \boxed{\{x\in\mathbb{Z} \mid 0\le x\le 2\}}$",
        True,
        "the gold answer is listed",
    ),
    (
        r"\{x \mid x \neq 3\}",
        r"The domain is $\boxed{(-\infty, 3) \cup (3, \infty)}$.",
        True,
        "a point cut out",
    ),
    (r"\{x \mid x \neq 3\}", r"The domain is $\boxed{\{3\}}$.", False, "the point itself"),
    (
        "(0,1)",
        r"The domain of $g$ is $\boxed{\{x \in \mathbb{R} : 0 < x < 1\}}$.",
        True,
        "the gold answer is an interval",
    ),
]

FONTS_COLOURS: list[Row] = [
    (
        r"\frac{9}{256}",
        r"The probability is $\boxed{\displaystyle\frac{9}{256}}$.",
        True,
        "display style",
    ),
    ("902", r"Hence $N = \boxed{\mathrm{902}}$.", True, "upright"),
    ("480", r"Hence $N = \boxed{\mathbf{408}}$.", False, "bold, digits exchanged"),
    (r"70 \sqrt{2}", r"The diagonal is $\boxed{\mathbf{70\sqrt{2}}}$.", True, "a bold product"),
    (r"70 \sqrt{2}", r"The diagonal is $\boxed{\mathbf{70}}$.", False, "bold, the root is lost"),
    (
        r"-\frac{24}{25}",
        r"$\sin 2x = \boxed{\color{green}{-\dfrac{24}{25}}}$",
        True,
        "green and large",
    ),
    (r"\text{Friday}", r"That day is a $\boxed{\mathrm{Friday}}$.", True, "an upright word"),
    (r"\text{Friday}", r"That day is a $\boxed{\mathrm{Saturday}}$.", False, "the next day"),
]

ORDINALS: list[Row] = [
    ("20", "Two flowers open each day.\n\n**Answer:** on the 20th day", True, "a preposition"),
    ("20", "Two flowers open each day.\n\n\\boxed{\\text{Day 20}}", True, "the noun before it"),
    ("20", "Two flowers open each day.\n\n\\boxed{\\text{Day 19}}", False, "the day before"),
    ("13", "She gets out there, so the answer is the 13th floor.", True, "stated, and of what"),
    ("13", "She gets out there, so the answer is the 14th floor.", False, "stated, one higher"),
    ("50", r"The first such term is the \boxed{50\text{th}}.", True, "not raised"),
    ("101", r"The first such term is the $\boxed{101^{\text{st}}}$.", True, "past a hundred"),
    ("101", r"The first such term is the $\boxed{100^{\text{th}}}$.", False, "the one before"),
]

SEVERAL_BOXES: list[Row] = [
    (
        "8",
        "Thus it takes \\boxed{8} hours.\n\nChecking: 8 hours at 60 km/h make 480 km.\n\n"
        "**Final Answer**\n\\boxed{8}",
        True,
        "said again after a check",
    ),
    (
        r"\frac{1}{6}, \frac{5}{36}",
        "**(a)** The first probability is $\\boxed{\\frac{1}{6}}$.\n\n"
        "**(b)** The second one is $\\boxed{\\frac{5}{36}}$.",
        True,
        "a box for each part",
    ),
    (
        r"\frac{1}{6}, \frac{5}{36}",
        "**(a)** The first probability is $\\boxed{\\frac{1}{6}}$.\n\n"
        "**(b)** The second one is $\\boxed{\\frac{5}{6}}$.",
        False,
        "a box for each part, the second wrong",
    ),
    (
        "25",
        "The side length is $\\boxed{5}$.\n\nHence the area of the square is $\\boxed{25}$.",
        True,
        "the last box answers the question",
    ),
    (
        "5",
        "The side length is $\\boxed{5}$.\n\nHence the area of the square is $\\boxed{25}$.",
        False,
        "an intermediate value",
    ),
    (
        r"2\sqrt{3}, -2\sqrt{3}",
        r"Therefore $m = \boxed{2\sqrt{3}}$ or $m = \boxed{-2\sqrt{3}}$.",
        True,
        "two roots",
    ),
    ("12, 18", r"The two numbers are $\boxed{12}$ and $\boxed{16}$.", False, "one of two is wrong"),
    (
        "34",
        "The first plan yields $\\boxed{30}$ and the second yields $\\boxed{34}$.\n\n"
        "So the maximum is $\\boxed{34}$.",
        True,
        "the greater one is said again",
    ),
]

HASHES: list[Row] = [
    (
        "366",
        "In the second month there were 60*3=<<60*3=180>>180 downloads.\n"
        "In the third there were 180-54=<<180-54=126>>126.\n"
        "Together that is 60+180+126=<<60+180+126=366>>366.\n#### 366",
        True,
        "a calculator's marks before it",
    ),
    (
        "366",
        "Together that is 60+180+120=<<60+180+120=360>>360.\n#### 360",
        False,
        "a wrong sum",
    ),
    ("2,280", "12 months at $190 each cost $2,280.\n#### $2,280.00", True, "comma and cents"),
    ("2,280", "12 months at $190 each cost $2,820.\n#### $2,820.00", False, "digits exchanged"),
    ("25", "50 / 2 = 25, so Kim is 25.\n#### 25 years old", True, "a unit of two words"),
    ("6", "He needs 6 boxes.\n\n#### $\\boxed{6}$", True, "a box behind the hashes"),
    ("4", "36 / 8 = 4.5\n#### 4.5", False, "not rounded"),
    (
        "694",
        "## Solution\nThe fees add up to 694.\n\n## Final Answer\n#### 694",
        True,
        "headings before it",
    ),
]

TEXT_BEHIND: list[Row] = [
    ("29", "The answer is 29 because 4 + 25 = 29.", True, "a sum as reason"),
    (
        "8",
        "The final answer is 8 (not 9, since the first day is not counted).",
        True,
        "a denial in parentheses",
    ),
    (
        "9",
        "The final answer is 8 (not 9, since the first day is not counted).",
        False,
        "the denied one",
    ),
    ("12", "Therefore, the answer is **12 cookies**, with 3 left over.", True, "emphasis, noun"),
    ("3", "Therefore, the answer is **12 cookies**, with 3 left over.", False, "the remainder"),
    (
        r"\frac{5}{13}",
        r"The answer is $\frac{5}{13} \approx 0.3846$.",
        True,
        "an approximation in the same formula",
    ),
    ("0.8", "Thus the answer is 0.8 m/s, directed to the left.", True, "a direction"),
    ("45", "Answer: 54 km/h, since 108 km are done in 2 hours.", False, "digits exchanged"),
]

HEADINGS_DISPLAY: list[Row] = [
    (
        "17",
        "Adding the crossings: 2 + 1 + 10 + 2 + 2 = 17.\n\n---\n\n### ✅ Final Answer\n\n"
        "**17 minutes**",
        True,
        "a unit in emphasis",
    ),
    (
        "17",
        "Adding the crossings: 2 + 1 + 10 + 1 + 5 = 19.\n\n---\n\n### ✅ Final Answer\n\n"
        "**19 minutes**",
        False,
        "a unit in emphasis, another number",
    ),
    (r"\frac{2}{21}", "**Answer**\n\n\\[\\frac{2}{21}\\]", True, "a label without a colon"),
    (
        "x^2+4x+1",
        "### Final Answer\n\n$$\nP(x) = x^2 + 4x + 1\n$$",
        True,
        "the polynomial named",
    ),
    (r"-\sqrt{3}", "The final answer is\n$$\n-\\sqrt{3}.\n$$", True, "a full stop in the display"),
    (
        r"-\sqrt{3}",
        "The final answer is\n$$\n-\\frac{\\sqrt{3}}{3}.\n$$",
        False,
        "the reciprocal",
    ),
    ("1625", "## Final Answer\n\n**The sum is 1625.**", True, "a sentence in emphasis"),
    ("32", "**Final Answer:**\n\n$$\n2^6 = 64\n$$", False, "a power too many"),
]

STATED_LANGUAGES: list[Row] = [
    ("7", "Damit ist $2x + 3 = 17$ gelöst.\n\n**Antwort:** 7", True, "German, a bold label"),
    ("7", "Die Antwort lautet also 17.", False, "German, another number"),
    ("150", "Au total, la réponse est donc **150** euros.", True, "French, emphasis and a unit"),
    ("36", "Entonces, la respuesta es 36 años.", True, "Spanish, a unit"),
    ("36", "Entonces, la respuesta es 63 años.", False, "Spanish, digits exchanged"),
    ("96", "よって並べ方を数えると、答えは96通りです。", True, "Japanese, a counter"),
    (r"2\sqrt{2}", r"因此，答案是 $2\sqrt{2}$。", True, "Chinese"),
    (r"2\sqrt{2}", r"因此，答案是 $\sqrt{2}$。", False, "Chinese, the factor is lost"),
]

UNTERMINATED: list[Row] = [
    (
        "385",
        "So $m + n = 256 + 129 = 385$.\n\n**Final Answer**\n\nThe sum is \\boxed{385",
        False,
        "cut off behind the heading",
    ),
    (
        r"\frac{1}{8}",
        "The probability is\n\\[\n\\boxed{\\dfrac{1}{8}",
        False,
        "only the fraction is closed",
    ),
    (
        "27",
        r"I found \boxed{27}, but the second case needs a check. It adds 3, so it is \boxed{3",
        False,
        "no stand-in from before the check",
    ),
    (r"3\sqrt{13}", r"The distance is $\boxed{3\sqrt{13", False, "cut in the root"),
    (
        r"\begin{pmatrix} 4 \\ -1 \end{pmatrix}",
        r"The projection is $\boxed{\begin{pmatrix} 4 \\ -1 \end{pmatrix",
        False,
        "cut at the end of the column",
    ),
    ("70", r"The smallest such number is \boxed{\text{70", False, "cut in text mode"),
    (
        r"\frac{\sqrt{21}}{5}",
        "Thus\n$$\n\\boxed{\n\\frac{\\sqrt{21}}{5}\n}\n$$",
        True,
        "over several lines and closed",
    ),
    ("y = 3x", r"The line through both is $\boxed{y = \frac{6}{2}x}$", True, "closed"),
]

UNITS_TEXT: list[Row] = [
    (r"336^\circ", r"The four arcs add up to $\boxed{336}$.", True, "the sign left out"),
    (r"336^\circ", r"The four arcs add up to $\boxed{24^\circ}$.", False, "the rest of the circle"),
    (
        r"1.2 \times 10^{3} \text{ kg/m}^3",
        r"Its density is $\boxed{1200\ \mathrm{kg\,m^{-3}}}$.",
        True,
        "written out, with a negative power",
    ),
    (r"5 \text{ hours}", r"They need $\boxed{5 \text{ hrs}}$.", True, "abbreviated"),
    (r"5 \text{ hours}", r"They need $\boxed{5 \text{ minutes}}$.", False, "another unit"),
    (r"0.25\text{ m}", r"The image is $\boxed{25\text{ cm}}$ tall.", True, "converted"),
    (r"\$36", r"Her change is $\boxed{\$36.00}$.", True, "cents"),
    (
        r"72\text{ km/h}",
        r"Its speed is $\boxed{72\text{ m/s}}$.",
        False,
        "the conversion is forgotten",
    ),
]

BASES: list[Row] = [
    ("321_4", r"So $57_{10} = \boxed{321_4}$.", True, "the decimal number before the box"),
    ("321_4", r"So $57_{10} = \boxed{312_4}$.", False, "digits exchanged"),
    ("1010101_2", "Answer: 1010101 (base 2)", True, "in words, stated"),
    ("1010101_2", r"In binary this is $\boxed{101010_2}$.", False, "a digit is missing"),
    ("3D7_{16}", "The answer is $3D7_{16}$.", True, "a letter as digit, stated"),
    ("3D7_{16}", r"In hexadecimal this is $\boxed{3B7_{16}}$.", False, "another letter as digit"),
    ("66_7", r"The difference is $\boxed{{66}_7}$.", True, "braces round the digits"),
    ("110", r"In decimal it is $\boxed{110_{10}}$.", True, "the base ten is written"),
]

MATRICES_VECTORS: list[Row] = [
    (
        r"\begin{pmatrix} 3 \\ -4 \end{pmatrix}",
        r"$\boxed{\left(\begin{array}{c} 3 \\ -4 \end{array}\right)}$",
        True,
        "an array of one column",
    ),
    (
        r"\begin{pmatrix} 3 \\ -4 \end{pmatrix}",
        r"$\boxed{\begin{pmatrix} -4 \\ 3 \end{pmatrix}}$",
        False,
        "entries exchanged",
    ),
    (
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
        r"Thus $A = \boxed{\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}}$.",
        True,
        "square brackets",
    ),
    (
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
        r"Thus $A = \boxed{\begin{bmatrix} 1 & 3 \\ 2 & 4 \end{bmatrix}}$.",
        False,
        "transposed",
    ),
    (
        r"\begin{pmatrix} 1/2 & 0 \\ 0 & 1/2 \end{pmatrix}",
        r"$\boxed{\begin{pmatrix} \frac{1}{2} & 0 \\ 0 & \frac{1}{2} \end{pmatrix}}$",
        True,
        "fractions",
    ),
    (
        r"\begin{bmatrix} \cos\theta & -\sin\theta \\ \sin\theta & \cos\theta \end{bmatrix}",
        r"$R = \boxed{\begin{pmatrix}\cos \theta&-\sin \theta\\ \sin \theta&\cos \theta"
        r"\end{pmatrix}}$",
        True,
        "a rotation in parentheses",
    ),
    (
        r"\begin{bmatrix} \cos\theta & -\sin\theta \\ \sin\theta & \cos\theta \end{bmatrix}",
        r"$R = \boxed{\begin{pmatrix}\cos \theta&\sin \theta\\ -\sin \theta&\cos \theta"
        r"\end{pmatrix}}$",
        False,
        "a rotation the other way",
    ),
    (
        "(2,-1,3)",
        r"The normal vector is $\boxed{\begin{pmatrix} 2 \\ -1 \\ 3 \end{pmatrix}}$.",
        True,
        "the gold answer stands on one line",
    ),
]

PLUS_MINUS: list[Row] = [
    (
        r"\pm\sqrt{5}",
        r"Hence $\boxed{x = \sqrt{5} \text{ or } x = -\sqrt{5}}$.",
        True,
        "both with the unknown",
    ),
    (r"\pm\sqrt{5}", r"Hence $\boxed{x = \sqrt{5}}$.", False, "only plus"),
    (r"2 \pm i", r"The roots are $\boxed{2+i,\ 2-i}$.", True, "complex roots"),
    (r"2 \pm i", r"The roots are $\boxed{2 \pm 2i}$.", False, "complex roots, not halved"),
    (
        r"\frac{1 \pm \sqrt{5}}{2}",
        r"$\boxed{\frac{1+\sqrt{5}}{2},\ \frac{1-\sqrt{5}}{2}}$",
        True,
        "written out",
    ),
    (r"\frac{1 \pm \sqrt{5}}{2}", r"$\boxed{\frac{-1 \pm \sqrt{5}}{2}}$", False, "a sign"),
    ("4, -6", r"By the formula, $x = \boxed{-1 \pm 5}$.", True, "not evaluated"),
    (
        r"y=\pm\frac{3}{4}x",
        r"双曲线的渐近线方程为 $\boxed{y = \pm\dfrac{3x}{4}}$。",
        True,
        "two lines, the letter in the numerator",
    ),
]

SETS_TUPLES: list[Row] = [
    (
        r"\left(\frac{1}{2}, \frac{3}{4}\right)",
        r"The vertex is $\boxed{(0.5, 0.75)}$.",
        True,
        "decimals",
    ),
    (
        r"\left(\frac{1}{2}, \frac{3}{4}\right)",
        r"The vertex is $\boxed{\left(\frac{3}{4}, \frac{1}{2}\right)}$.",
        False,
        "coordinates exchanged",
    ),
    ("1, 2, 4, 8", r"The values are $\boxed{\{1, 2, 4, 8\}}$.", True, "braces added"),
    ("1, 2, 4, 8", r"The values are $\boxed{1, 2, 4}$.", False, "one is missing"),
    (r"\{-2, 0, 3\}", r"So the solutions are $\boxed{x = -2, 0, 3}$.", True, "the unknown named"),
    (
        "(2,4,4), (3,3,3), (2,3,6)",
        r"All solutions with $a\le b\le c$: $\boxed{(3,3,3), (2,4,4), (2,3,6)}$",
        True,
        "triples in another order",
    ),
    (
        "(2,4,4), (3,3,3), (2,3,6)",
        r"All solutions with $a\le b\le c$: $\boxed{(3,3,3), (2,4,4)}$",
        False,
        "a triple is missing",
    ),
    (
        r"\{(1,1), (-1,-1)\}",
        r"They meet at $\boxed{(1, 1), (-1, -1)}$.",
        True,
        "without braces",
    ),
]

CONGRUENCE_MISC: list[Row] = [
    (r"n \equiv 1 \pmod 3", r"Exactly when $\boxed{n \equiv 1 \ (\bmod\ 3)}$.", True, "bmod"),
    (r"n \equiv 1 \pmod 3", r"Exactly when $\boxed{n \equiv 2 \pmod 3}$.", False, "a residue"),
    (r"\text{No}", "No such triangle exists.\n\nThe answer is **No**.", True, "a verdict"),
    (r"\text{No}", "Such a triangle exists.\n\nThe answer is **Yes**.", False, "the opposite"),
    (
        r"\text{Thursday}",
        r"Counting on, January 1 falls on a \boxed{\text{Thursday}}.",
        True,
        "a day of the week",
    ),
    (
        r"\text{increasing}",
        r"On this interval $f$ is $\boxed{\text{decreasing}}$.",
        False,
        "the opposite, a longer word",
    ),
    (r"\text{neither}", "**Final Answer:** Neither", True, "a capital, stated"),
    (
        r"\text{A is a knight and B is a knave}",
        r"$$\boxed{\text{A is a Knight and B is a Knave}}$$",
        True,
        "capitals in a sentence",
    ),
]

PERCENT_RATIO: list[Row] = [
    (r"15\%", "Answer: 15%", True, "stated, a plain sign"),
    (r"15\%", r"The discount is $\boxed{85\%}$.", False, "what is left to pay"),
    ("1:4", r"The areas are in the ratio $\boxed{1 : 4}$.", True, "wider spaces"),
    ("1:4", r"The areas are in the ratio $\boxed{1 : 16}$.", False, "squared once too often"),
    (r"\frac{7}{20}", r"The probability is $\boxed{35\%}$.", True, "a fraction as percentage"),
    ("9:16", r"The ratio is $\boxed{\dfrac{9}{16}}$.", True, "a ratio as fraction"),
    (r"6.25\%", r"The chance is $\boxed{\frac{1}{16}}$.", True, "a percentage as fraction"),
    (r"6.25\%", r"The chance is $\boxed{62.5\%}$.", False, "ten times as much"),
]

EXPRESSIONS: list[Row] = [
    (
        r"\frac{x^3}{3}+x+C",
        r"The integral is $\boxed{\frac{1}{3}x^3 + x + C}$.",
        True,
        "the coefficient before it",
    ),
    (r"\frac{x^3}{3}+x+C", r"The integral is $\boxed{x^3 + x + C}$.", False, "no coefficient"),
    ("1 - 12i", r"The product is $\boxed{-12i + 1}$.", True, "parts exchanged"),
    (r"\frac{\ln 3}{4}", r"$k = \boxed{\frac{1}{4}\ln 3}$", True, "the fraction before it"),
    (r"\frac{\ln 3}{4}", r"$k = \boxed{\ln\frac{3}{4}}$", False, "the quotient in the logarithm"),
    (r"18+2\pi", r"The perimeter is $\boxed{2(\pi+9)}$.", True, "the factor taken out"),
    (
        r"\frac{1}{\sqrt{2}}",
        r"$\sin 45^\circ = \boxed{\frac{\sqrt{2}}{2}}$",
        True,
        "no root below",
    ),
    ("3^n-2^n", r"There are $\boxed{3^n - 2^{n-1}}$ of them.", False, "another exponent"),
]

CHOICE_STATED: list[Row] = [
    ("F", "Only the sixth statement survives, so the best answer is (F).", True, "best"),
    ("B", "Therefore, the correct answer is **(B) 0.25 mol**.", True, "a value in emphasis"),
    ("D", "Therefore, the correct answer is **(B) 0.25 mol**.", False, "another letter"),
    ("C", "The NMR signal at 9.8 ppm shows an aldehyde.\n\nANSWER: C", True, "capitals"),
    ("A", "Weighing the evidence, I would choose option A.", True, "a choice in the first person"),
    (
        "C",
        "A. Too small.\nB. Wrong sign.\nC. This fits.\nD. Too large.\n\nSo the answer is C.",
        True,
        "after a review of the options",
    ),
    (
        "B",
        "A. Too small.\nB. Wrong sign.\nC. This fits.\nD. Too large.\n\nSo the answer is C.",
        False,
        "a reviewed option",
    ),
    ("J", "Thus, the correct answer is I.", False, "of ten options"),
]

CHOICE_BEHIND: list[Row] = [
    ("B", "The answer is B. 4.5 × 10^14 Hz", True, "a frequency"),
    (
        "C",
        "The correct answer is C: inflation rises while output falls.",
        True,
        "a colon and a clause",
    ),
    ("D", "Answer: D. A catalyst lowers the activation energy.", True, "an article begins it"),
    ("A", "Answer: D. A catalyst lowers the activation energy.", False, "the article"),
    ("C", r"So we pick $\boxed{\text{C) } 12}$.", True, "a parenthesis and a number"),
    ("B", "The answer is C, though B comes close.", False, "a concession"),
    ("AC", "The correct answers are A and C.", True, "two letters with a word between"),
    (
        "D",
        "So the answer is **(C)**, because option D ignores friction.",
        False,
        "the rejected one",
    ),
]

CHOICE_BOX_WITHOUT_LETTER: list[Row] = [
    (
        "B",
        "The base is $\\boxed{12}$ cm long.\n\nThis matches option **B**.",
        True,
        "the match is stated",
    ),
    (
        "C",
        "The base is $\\boxed{12}$ cm long.\n\nThis matches option **B**.",
        False,
        "the match is stated, another letter; the unit begins with it",
    ),
    (
        "D",
        "$$\\boxed{v = \\sqrt{2gh}}$$\n\nThe answer is (D).",
        True,
        "a speed in the box",
    ),
    (
        "G",
        "$$\\boxed{v = \\sqrt{2gh}}$$\n\nThe answer is (D).",
        False,
        "a letter of the speed",
    ),
    (
        "A",
        "The ship moves at $\\boxed{0.85\\,c}$.\n\nTherefore the correct choice is A.",
        True,
        "a part of the speed of light in the box",
    ),
    (
        "C",
        "The ship moves at $\\boxed{0.85\\,c}$.\n\nTherefore the correct choice is A.",
        False,
        "the letter of the speed of light",
    ),
    ("E", "\\boxed{\\text{None of the above}}\n\nAnswer: E", True, "a phrase in the box"),
    ("C", "Thus $\\boxed{n = 3}$.\n\n**Final answer: C**", True, "a quantum number in the box"),
]

CHOICE_LANGUAGES: list[Row] = [
    ("D", "Somit ist Antwort D richtig.", True, "German, the verb before it"),
    ("A", "Somit ist Antwort D richtig.", False, "German, another letter"),
    ("C", "La réponse correcte est donc la C.", True, "French, an article"),
    ("B", "La energía se conserva. La respuesta es la B.", True, "Spanish, an article"),
    ("D", "La energía se conserva. La respuesta es la B.", False, "Spanish, another letter"),
    ("ABD", "选项 C 错误，其余均正确，故选：ABD。", True, "Chinese, three letters"),
    ("D", "由动量守恒定律可得。\n\n答案：D", True, "Chinese, a label"),
    ("A", "よって、正解は(C)です。", False, "Japanese, another letter"),
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


_CLAMP = _program(
    "clamp(x, lo, hi)",
    "Keep x between lo and hi.",
    "f(5, 0, 3) == 3",
    "f(-1, 0, 3) == 0",
    "f(2, 0, 3) == 2",
)
_LONGEST = _program(
    "longest_word(text)",
    "Return the longest word of a text.",
    "f('a bee sees') == 'sees'",
    "f('one') == 'one'",
)
_DIGITS = _program(
    "digit_sum(n)", "Add the decimal digits of n.", "f(123) == 6", "f(0) == 0", "f(99) == 18"
)

CODE_FENCES: list[Row] = [
    (
        _CLAMP,
        "Here's a simple solution:\n\n```python\ndef clamp(x, lo, hi):\n"
        "    return max(lo, min(x, hi))\n```\n\n**Explanation:**\n\n- `min(x, hi)` bounds it from"
        " above.\n- `max(lo, ...)` bounds it from below.",
        True,
        "an explanation with code in its lines",
    ),
    (
        _CLAMP,
        "Here's a simple solution:\n\n```python\ndef clamp(x, lo, hi):\n"
        "    return min(lo, max(x, hi))\n```\n\n**Explanation:**\n\n- `max` and `min` bound it.",
        False,
        "the bounds exchanged",
    ),
    (
        _LONGEST,
        "```python\nfrom typing import List\n\n\ndef longest_word(text: str) -> str:\n"
        '    """Return the longest word of a text."""\n    words: List[str] = text.split()\n'
        "    return max(words, key=len)\n```",
        True,
        "an import, types and a docstring",
    ),
    (
        _LONGEST,
        "```python\ndef longest_word(text):\n    return sorted(text.split(), key=len)[0]\n```",
        False,
        "the shortest one",
    ),
    (
        _DIGITS,
        "```python\ndef digit_sum(n):\n    return sum(int(d) for d in str(n))\n\n\n"
        'if __name__ == "__main__":\n    print(digit_sum(123))\n```',
        True,
        "a main block behind it",
    ),
    (
        _DIGITS,
        "1. **Loop over the digits**\n\n   ```python\n   def digit_sum(n):\n       total = 0\n"
        "       while n > 9:\n           total += n % 10\n           n //= 10\n"
        "       return total\n   ```",
        False,
        "in a list, the first digit is forgotten",
    ),
    (
        _DIGITS,
        "### Solution\n\n```python\ndef digit_sum(n):\n    total = 0\n    while n:\n"
        "        n, d = divmod(n, 10)\n        total += d\n    return total\n```\n\n"
        "### Usage\n\n```python\nprint(digit_sum(123))  # 6\n```",
        True,
        "a second fence only calls it",
    ),
    (
        _LONGEST,
        "To find it, keep the best word so far:\n\n    ```python\n    def longest_word(text):\n"
        "        best = ''\n        for word in text.split():\n"
        "            if len(word) > len(best):\n                best = word\n"
        "        return best\n    ```",
        True,
        "a fence behind four spaces",
    ),
]
