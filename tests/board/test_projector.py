"""The words of TensorBoard's Projector page, made from the model of a finished run."""

import io
import shutil
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from harness.board.projector import NUM_WORDS, write_projector
from harness.board.shown_runs import Shown
from tests.board.tensorboard_process import Board
from tests.conftest import Harness


def make_model(run: Path, matrix: np.ndarray, words: list[str], vocab_size: int) -> None:
    """What is read of a finished run, with a table of words as Keras writes it."""
    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        file["layers/embedding/vars/0"] = matrix[:3]  # of something else than words
        file["layers/embedding_1/vars/0"] = matrix
    with zipfile.ZipFile(run / "model.keras", "w") as model:
        model.writestr("model.weights.h5", weights.getvalue())
    (run / "job.toml").write_text(f"[data]\nvocab_size = {vocab_size}\n")
    (run / "vocabulary.txt").write_text("".join(f"{word}\n" for word in words))


def test_the_commonest_words_are_written_in_binary(tmp_path: Path) -> None:
    """Of more words the first ten thousand; what could pass for text is written as text."""
    matrix = np.random.default_rng(1).normal(size=(10_050, 3)).astype(np.float32)
    make_model(tmp_path, matrix, [f"word{n}" for n in range(10_050)], 10_050)
    write_projector(tmp_path, tmp_path)
    assert (tmp_path / "embedding.bytes").read_bytes() == matrix[:NUM_WORDS].tobytes()
    words = (tmp_path / "words.tsv").read_text().split()
    assert words[:5] == ["<pad>", "<start>", "<unknown>", "<unused>", "word0"]
    assert words[-1] == f"word{NUM_WORDS - 5}"
    config = (tmp_path / "projector_config.pbtxt").read_text()
    assert 'tensor_path: "embedding.bytes"' in config
    assert "tensor_shape: 10000\n  tensor_shape: 3" in config
    text = np.frombuffer(b"\n\x01\x02\x03" * 6, np.float32).reshape(6, 1)
    make_model(tmp_path, text, ["", "a\tb"], 6)
    write_projector(tmp_path, tmp_path)
    written = np.loadtxt(tmp_path / "embedding.tsv", dtype=np.float32)
    assert written.tolist() == text[:, 0].tolist()
    assert (tmp_path / "words.tsv").read_text().endswith("<unused>\n''\na b\n")
    assert 'tensor_path: "embedding.tsv"' in (tmp_path / "projector_config.pbtxt").read_text()
    make_model(tmp_path, matrix, [], 7)
    with pytest.raises(KeyError, match="no table of words"):
        write_projector(tmp_path, tmp_path)


def test_the_page_shows_the_words_of_a_finished_run(
    finished: tuple[Harness, Path], harness: Harness
) -> None:
    """Each word beside its vector as Keras reads it, and nothing is written into the run."""
    _, run = finished
    before = sorted(run.rglob("*"))
    board = Board(harness, run).wait()
    try:
        name = f"{run.parent.name}/{run.name}"
        board.wait_for_runs(f"{name}/train")
        assert name in board.json("plugin/projector/runs")
        (embedding,) = board.json(f"plugin/projector/info?run={name}")["embeddings"]
        page = f"/{board.secret}/data/plugin/projector"
        _, vectors, _ = board.ask(f"{page}/tensor?run={name}&name=embedding")
        _, words, _ = board.ask(f"{page}/metadata?run={name}&name=embedding")
    finally:
        board.end()
    model = keras.saving.load_model(run / "model.keras")
    matrix = next(each for each in model.get_weights() if each.ndim == 2)
    shape = embedding["tensorShape"]
    assert np.frombuffer(vectors, np.float32).tobytes() == matrix[: shape[0]].tobytes()
    assert words.decode().splitlines()[3:5] == [
        "<unused>",
        (run / "vocabulary.txt").read_text().split()[0],
    ]
    assert sorted(run.rglob("*")) == before


def test_a_run_without_words_is_shown_without(
    finished: tuple[Harness, Path], tmp_path: Path
) -> None:
    """A broken model, and one that trains."""
    _, run = finished
    for name in ("broken", "trains", "whole"):
        shutil.copytree(run, tmp_path / "runs/bilstm" / name)
    folders = {name: tmp_path / "runs/bilstm" / name for name in ("broken", "trains")}
    (folders["broken"] / "model.keras").write_bytes(b"PK")
    (folders["trains"] / "result.json").unlink()
    (folders["trains"] / "tensorboard/plugins/profile").mkdir(parents=True)
    (tmp_path / "board").mkdir()
    shown = Shown(tmp_path / "board/runs", [], tmp_path / "runs")
    shown.refresh()
    links = {path.name: path for path in (tmp_path / "board/runs/bilstm").iterdir()}
    assert [name for name, path in links.items() if not path.is_symlink()] == ["whole"]
    assert (links["whole"] / "projector_config.pbtxt").is_file()
    assert sorted(tmp_path.glob("board/*")) == [tmp_path / "board/runs"]
    shutil.copy(run / "result.json", folders["trains"])  # it has ended
    shown.refresh()
    assert (links["trains"] / "projector_config.pbtxt").is_file()
    assert (links["trains"] / "plugins/profile").is_dir()
