"""The state of a sweep, read from outside: no supervisor runs, and nothing is waited for."""

from collections.abc import Iterator

from harness.sweep_protocol.journal import Ledger, Record, decode
from harness.sweep_protocol.mailbox import SharedFolder


def read_ledger(shared: SharedFolder) -> Ledger:
    """The state of a sweep as far as it is seen here."""
    logs: list[tuple[list[Record], int, bytes]] = []
    generation = 1
    while shared.disk.opens(shared.path("journal", str(generation))):
        content = shared.disk.read(shared.path("journal", str(generation), "log")) or b""
        logs.append((*decode(content), content))
        generation += 1
    ledger = Ledger()
    for record in _counting(logs):
        ledger.apply(record)
    return ledger


def _counting(logs: list[tuple[list[Record], int, bytes]]) -> Iterator[Record]:
    sizes: list[int] = []
    for records, size, _ in reversed(logs):
        if records:
            sizes = [*records[0]["sizes"], size]
            break
    for (_, _, content), size in zip(logs, sizes, strict=False):
        yield from decode(content[:size])[0]
