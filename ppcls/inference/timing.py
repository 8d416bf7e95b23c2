"""Timing of calls that take turns, so that none of them disturbs the others."""

import time
from collections.abc import Callable, Mapping
from statistics import median


def time_in_blocks(
    runs: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    seconds: float = 0.5,
    pause: float = 0.2,
    of: Callable[[list[float]], float] = median,
) -> dict[str, list[float]]:
    """Return the seconds for one call of each of `runs`: in each round, `of` a block of calls.

    In a round each of them runs for a block of at least `seconds` and two calls, after a pause and a call
    that is not counted: the threads of some engines keep spinning after a call and would slow down the next
    engine. Each round starts with another one.
    """
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(pause)
            runs[name]()
            calls: list[float] = []
            while len(calls) < 2 or sum(calls) < seconds:
                start = time.perf_counter()
                runs[name]()
                calls.append(time.perf_counter() - start)
            times[name].append(of(calls))
    return times
