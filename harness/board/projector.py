"""The files of TensorBoard's Projector page: the words of a trained model and their vectors."""

import io
import re
import zipfile
from pathlib import Path

import h5py
import numpy as np

from harness.data.dataset import vocab_from_bytes
from harness.files.lenient_json import read_toml, table, whole
from harness.files.plain_file import read_plain_file

CONFIG = "projector_config.pbtxt"
FILES = {CONFIG, "embedding.bytes", "embedding.tsv", "words.tsv"}
NUM_WORDS = 10_000  # the commonest; the page draws no more points either
SPECIAL = ("<pad>", "<start>", "<unknown>", "<unused>")  # the indices before the words
EMBEDDING = re.compile(r"layers/embedding(_\d+)?/vars/0")  # as Keras names the table of words


def write_projector(run: Path, folder: Path) -> None:
    """Write the vectors of the commonest words of a run beside the links to its event files.

    Raises:
        KeyError: if its network has no table of words.
        Exception: if a file of the run is missing or broken.
    """
    words = vocab_from_bytes(read_plain_file(run / "vocabulary.txt"))
    vocab = [*SPECIAL, *words][:NUM_WORDS]
    matrix = _table_of_words(run, len(vocab))
    vocab = vocab[: len(matrix)]
    content, name = matrix.astype("<f4").tobytes(), "embedding.bytes"
    if _may_be_text(content):
        text = io.BytesIO()
        np.savetxt(text, matrix, fmt="%.9g", delimiter="\t")
        content, name = text.getvalue(), "embedding.tsv"
    (folder / name).write_bytes(content)
    # An empty line, or one with a tab, would shift the words against their rows.
    labels = (" ".join(word.split()) or repr(word) for word in vocab)
    (folder / "words.tsv").write_text("".join(f"{label}\n" for label in labels), "utf-8")
    (folder / CONFIG).write_text(
        "embeddings {\n"
        '  tensor_name: "embedding"\n'
        f'  tensor_path: "{name}"\n'
        '  metadata_path: "words.tsv"\n'
        f"  tensor_shape: {matrix.shape[0]}\n"
        f"  tensor_shape: {matrix.shape[1]}\n"
        "}\n"
    )


def _table_of_words(run: Path, num_words: int) -> np.ndarray:
    """[words, dim] float32, at most `num_words`; without TensorFlow."""
    size = whole(table(read_toml(run / "job.toml"), "data").get("vocab_size"))
    with zipfile.ZipFile(io.BytesIO(read_plain_file(run / "model.keras"))) as model:
        weights = io.BytesIO(model.read("model.weights.h5"))
    found: list[h5py.Dataset] = []

    def look(name: str, item: object) -> None:
        if EMBEDDING.fullmatch(name) and isinstance(item, h5py.Dataset) and len(item) == size:
            found.append(item)

    with h5py.File(weights) as file:
        file.visititems(look)
        if not found:
            raise KeyError(f"{run}: its network has no table of words")
        return np.asarray(found[0][:num_words], np.float32)


def _may_be_text(content: bytes) -> bool:
    """Whether TensorBoard may take vectors in binary for a table.

    It reads a file as text, a line at a time, until a byte is no UTF-8.
    """
    try:
        content.partition(b"\n")[0].decode()
    except UnicodeDecodeError:
        return False
    return True
