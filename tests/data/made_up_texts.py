"""Texts in a table or in folders, as a user would name them in `data.source`."""

import csv
import random
from collections.abc import Sequence
from pathlib import Path

GOOD = ("great", "fine", "lovely", "wonderful")
BAD = ("dull", "awful", "boring", "dreadful")
PLAIN = ("the", "film", "was", "a", "story", "of", "it", "and")


def make_rows(num: int, seed: int = 1) -> list[tuple[str, str]]:
    """Return different texts, with the labels pos and neg in turn."""
    chosen = random.Random(seed)  # noqa: S311 - not a secret
    rows = []
    for i in range(num):
        words = chosen.choices(PLAIN, k=8) + chosen.choices((GOOD, BAD)[i % 2], k=3)
        chosen.shuffle(words)
        rows.append((f"{' '.join(words)}, no. {seed}x{i}", ("pos", "neg")[i % 2]))
    return rows


def write_csv(
    path: Path, rows: Sequence[Sequence[str]], header: Sequence[str] = ("text", "label")
) -> Path:
    """Write a table, tab-separated if the name ends in .tsv."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerows([header, *rows])
    return path


def write_folder(folder: Path, rows: Sequence[Sequence[str]]) -> Path:
    """Write a folder for each class and a file for each text."""
    for i, (text, label) in enumerate(rows):
        (folder / label).mkdir(parents=True, exist_ok=True)
        (folder / label / f"{i}.txt").write_text(text, encoding="utf-8")
    return folder
