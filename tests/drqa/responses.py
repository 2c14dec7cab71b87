"""Responses to batch prompts in the manner of reasoning models; none is a sample of one."""

from __future__ import annotations

NATALIA = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in "
    "May. How many clips did Natalia sell altogether in April and May?"
)
WENG = (
    "Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of babysitting. "
    "How much did she earn?"
)
JAMES = (
    "James writes a 3-page letter to 2 different friends twice a week. How many pages does he "
    "write a year?"
)
THREE = (NATALIA, WENG, JAMES)

HEADED = """Okay, I have three problems to solve. Let me take them one at a time.

**Question 1:** Natalia sold 48 clips in April and half as many in May, so 48 / 2 = 24.

Altogether that is 48 + 24 = 72.

**Question 2:** 50 minutes are 50/60 of an hour. Wait, that is 5/6. So she earned 12 * 5/6 = 10.

**Question 3:** He writes 3 * 2 = 6 pages each time, twice a week is 12, and 12 * 52 = 624.
"""
SPOKEN = """Alright, let's start with the first problem. In April she sold 48 clips.
In May it was half of that, 24. So 48 + 24 = 72.

Moving on to the second question. An hour is $12. So one minute is $0.2.
Then 50 minutes make 50 * 0.2 = 10 dollars.

Now, for the third problem, each letter has 3 pages.
Hmm, two friends, twice a week: 3 * 2 * 2 = 12. Times 52 is 624.
"""
NUMBERED = """1. Natalia sold 48 clips in April and 24 in May, altogether 72 clips.

2. Weng earns $12 an hour; 50 minutes of babysitting are 10 dollars.

3. James writes 3 pages to 2 friends twice a week: 12 pages, and 624 a year."""
CHINESE = """好的，我来依次解决这三道题。

第一题：四月份卖了48个，五月份卖了一半，也就是24个。48 + 24 = 72。

接下来看第二题。每小时12美元，50分钟就是 12 * 50 / 60 = 10 美元。

最后是第3题：每次 3 * 2 = 6 页，每周两次就是12页，12 * 52 = 624。
"""
SPLIT = {"headed": HEADED, "spoken": SPOKEN, "numbered": NUMBERED, "chinese": CHINESE}
"""Thinking about the three questions that can be split cleanly, by its manner."""
