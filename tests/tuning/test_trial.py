"""When a trial is called hopeless."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.tracking.run_dir import RunDirectory
from harness.tuning.trial import Hopeless
from tests.tuning.made_up_sweep import RANDOM, make_sweep


def ended_at(folder: Path, scores: list[float], peers: list[list[float]]) -> int | None:
    """The epoch after which a trial with these scores is ended, among finished others."""
    sweep = make_sweep(folder, RANDOM.replace("[search]", "[search]\nstop_hopeless = true"))
    for number, peer in enumerate(peers):
        run = RunDirectory(sweep.folder / "trials" / f"000{number}-seed1")
        run.folder.mkdir(parents=True)
        lines = [json.dumps({"val_accuracy": score}) for score in peer]
        run.write_text("metrics.jsonl", "\n".join(lines))
        run.write_text("result.json", "{}")
    callback = Hopeless(sweep, RunDirectory(sweep.folder / "trials" / "0009-seed1"))
    model = SimpleNamespace(stop_training=False)
    callback.set_model(model)
    for epoch, score in enumerate(scores):
        callback.on_epoch_end(epoch, {"val_accuracy": score})
        if model.stop_training:
            return epoch + 1
    return None


GOOD = [0.8, 0.85, 0.87]


@pytest.mark.parametrize(
    ("scores", "peers", "epoch"),
    [
        ([0.5, 0.5, 0.5], [GOOD] * 3, 2),  # not after the first epoch, whatever it was
        ([0.5, 0.86, 0.86], [GOOD] * 3, 3),  # a cold start is no reason to end, a late one is
        ([0.5, 0.86, 0.88], [GOOD] * 3, None),
        ([0.5, 0.5, 0.5], [GOOD] * 2, None),  # two others are too few
        ([0.5, 0.5, 0.5], [GOOD[:1]] * 3, None),  # and those that did not come as far do not count
        ([0.8, 0.85, 0.8], [GOOD, GOOD, [0.5] * 3, [0.5] * 3], None),  # the best so far counts
    ],
)
def test_a_trial_is_ended_below_the_median_of_the_others(
    tmp_path: Path, scores: list[float], peers: list[list[float]], epoch: int | None
) -> None:
    """Its best so far is held against theirs at the same epoch, from the second one on."""
    assert ended_at(tmp_path / "sweep", scores, peers) == epoch
