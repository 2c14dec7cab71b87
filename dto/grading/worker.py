"""A child process that compares answers with math-verify. A script: run it, never import it.

It imports neither torch nor dto, so that it starts in a fraction of a second. One JSON object a
line: `{"gold": …, "prediction": …}` in, `{"equal": true}` or `{"error": …}` out; `{"ready": true}`
comes first. Without a prediction the gold answer is read and compared with a number: an error then
says that nothing can be compared with it. Its argument is the CPU time that one comparison may
take, in seconds: the kernel ends the process (SIGPROF) when that is spent, also inside a
big-integer power that no Python signal handler could interrupt. CPU time, not wall time: a busy
machine does not change a grade. It ends with its parent.
"""

import contextlib
import ctypes
import json
import logging
import resource
import signal
import sys

MEMORY = 2 * 2**30  # bytes of address space

UNREADABLE_GOLD = "unreadable_gold"  # the pool knows it: the one error that costs no child


class UnreadableGoldError(Exception):
    """Math-verify finds nothing in the gold answer."""


def die_with_parent() -> None:
    """Linux: be killed when the parent dies. Elsewhere the end of stdin does it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> None:
    """Answer requests until stdin ends."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group; the parent decides
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    cpu_seconds = float(sys.argv[1])

    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable(logging.CRITICAL)
    config = [LatexExtractionConfig()]
    parsed_golds: dict[str, list[object]] = {}

    def read(answer: str) -> list[object]:
        boxed = f"\\boxed{{{answer}}}"
        return list(parse(boxed, config, fallback_mode="no_fallback", parsing_timeout=None))

    number = read("\\frac{17}{19}")

    def equal(gold: str, prediction: str | None) -> bool:
        if gold not in parsed_golds:
            if len(parsed_golds) >= 1000:
                parsed_golds.clear()
            parsed_golds[gold] = read(gold)
        if not parsed_golds[gold]:
            raise UnreadableGoldError
        given = number if prediction is None else read(prediction)
        return bool(verify(parsed_golds[gold], given, timeout_seconds=None))

    equal("1", "\\frac{2}{2}")  # the first comparison builds the parser
    print('{"ready": true}', flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        try:
            equals = equal(request["gold"], request.get("prediction"))
            reply: dict[str, object] = {"equal": equals}
        except UnreadableGoldError:
            reply = {"error": UNREADABLE_GOLD}
        except MemoryError:
            reply = {"error": "grader_memory"}
        except RecursionError:
            reply = {"equal": False}  # nested deeper than any answer
        except Exception as error:
            reply = {"error": f"grader_error: {type(error).__name__}"}
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
