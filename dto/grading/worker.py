"""A child process that compares answers part by part (`dto.grading.algebra`).

It does not import torch, so that it starts in a second. One JSON object a line: `{"gold": …,
"prediction": …}` in, `{"equal": true}` or `{"error": …}` out; `{"ready": true}` comes first.
Without a prediction the gold answer is read and compared with a number: an error then says that
nothing can be compared with it. With `"alone": true` math-verify compares the two as they are.

Its argument is the CPU time that one comparison may take, in seconds: the kernel ends the process
(SIGPROF) when that is spent, also inside a big-integer power that no Python signal handler could
interrupt. CPU time, not wall time: a busy machine does not change a grade. It ends with its parent.
"""

import contextlib
import gc
import json
import logging
import resource
import signal
import sys
from functools import lru_cache
from typing import Any

from dto.processes import die_with_parent

MEMORY = 2 * 2**30  # bytes of address space

UNREADABLE_GOLD = "unreadable_gold"  # the pool knows it: the one error that costs no child
NUMBER = r"\frac{17}{19}"  # that no gold answer is


def main() -> None:
    """Answer requests until stdin ends."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group; the parent decides
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    cpu_seconds = float(sys.argv[1])

    logging.disable(logging.CRITICAL)
    from dto.grading import algebra
    from dto.grading.compare import leaf, readable, structure
    from dto.grading.notation import clean
    from dto.grading.structure import leaves, same

    def compared(gold: str, given: str) -> bool:
        decided = leaf(gold, given)
        if decided is not None:
            return decided
        try:
            return algebra.same(gold, given)
        except algebra.UnreadableError:
            if readable(gold):
                return False  # a word beside an expression
            raise

    @lru_cache(maxsize=1000)
    def check(gold: str) -> None:
        for text in leaves(structure(gold)):
            if not readable(text) and algebra.expression(text) is None:
                raise algebra.UnreadableError(text)

    def equal(gold: str, prediction: str | None) -> bool:
        gold = clean(gold)
        check(gold)
        if prediction is None:  # is every comparison with it too expensive?
            return not any(compared(text, NUMBER) for text in leaves(structure(gold)))
        return bool(same(structure(gold), structure(clean(prediction)), compared))

    def work(request: dict[str, Any]) -> bool:
        pair = request["gold"], request.get("prediction")
        return algebra.alone(*pair) if request.get("alone") else equal(*pair)

    equal("x+1", "1+x")  # the first comparison builds the parser
    gc.freeze()  # a parser makes many small objects, and few that outlive a comparison
    gc.set_threshold(50_000)
    print('{"ready": true}', flush=True)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        try:
            reply: dict[str, object] = {"equal": work(request)}
        except algebra.UnreadableError:
            reply = {"error": UNREADABLE_GOLD}
        except MemoryError:
            reply = {"error": "grader_memory"}
        except RecursionError:
            alone = request.get("prediction") is None
            reply = {"error": UNREADABLE_GOLD} if alone else {"equal": False}  # nested too deep
        except Exception as error:
            reply = {"error": f"grader_error: {type(error).__name__}"}
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
