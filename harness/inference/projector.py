"""The files of the Projector page: the words, their vectors, and which belong together."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from harness.files.atomic_file import atomic_write

NUM_WORDS = 10_000  # the commonest; the page draws no more points either


def write_projector(folder: Path, matrix: np.ndarray, vocab: Sequence[str], *, remedy: str) -> None:
    """Write the vectors of the commonest words.

    Args:
        folder: of the event files.
        matrix: [vocab, dim] float32.
        vocab: [vocab], the words in the order of the rows, the commonest first.
        remedy: what the user can do if the disk refuses.

    Raises:
        ValueError: if there is not a word for each row.
        RunError: if the disk refuses.
    """
    if matrix.shape[:1] != (len(vocab),):
        raise ValueError(f"{len(vocab)} words for a matrix {matrix.shape}: should be one per row")
    matrix, vocab = matrix[:NUM_WORDS], vocab[:NUM_WORDS]
    content, name = matrix.astype("<f4").tobytes(), "embedding.bytes"
    if _may_be_text(content):
        text = io.BytesIO()
        np.savetxt(text, matrix, fmt="%.9g", delimiter="\t")
        content, name = text.getvalue(), "embedding.tsv"
    # An empty line, or one with a tab, would shift the words against their rows.
    labels = [" ".join(word.split()) or repr(word) for word in vocab]
    config = (
        "embeddings {\n"
        '  tensor_name: "embedding"\n'
        f'  tensor_path: "{name}"\n'
        '  metadata_path: "words.tsv"\n'
        f"  tensor_shape: {matrix.shape[0]}\n"
        f"  tensor_shape: {matrix.shape[1]}\n"
        "}\n"
    )
    atomic_write(folder / name, content, remedy=remedy)
    words = "".join(f"{label}\n" for label in labels)
    atomic_write(folder / "words.tsv", words, remedy=remedy)
    # Last, since it names the other two.
    atomic_write(folder / "projector_config.pbtxt", config, remedy=remedy)


def _may_be_text(content: bytes) -> bool:
    """Whether TensorBoard may take vectors in binary for a table.

    It reads a file as text, a line at a time, until a byte is no UTF-8.
    """
    try:
        content.partition(b"\n")[0].decode()
    except UnicodeDecodeError:
        return False
    return True
