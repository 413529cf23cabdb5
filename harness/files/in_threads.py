"""Many small questions to a file system, asked side by side: over a network each takes a while."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

MAX_THREADS = 32
FEWEST = 8  # for each thread; to start one takes longer than a question to a local disk

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def in_threads(ask: Callable[[Item], Answer], items: Sequence[Item]) -> list[Answer]:
    """The answer to each item, in order; an error that one raises is raised here."""
    num = min(MAX_THREADS, len(items) // FEWEST)
    if num < 2:
        return [ask(item) for item in items]
    answers: dict[int, Answer] = {}

    def work(first: int) -> None:
        # A share of them: a future for each would take longer than most of the answers.
        for index in range(first, len(items), num):
            answers[index] = ask(items[index])

    with ThreadPoolExecutor(num) as pool:
        for _ in pool.map(work, range(num)):
            pass
    return [answers[index] for index in range(len(items))]
