"""`harness prune`: frees what finished runs and sweeps hold that can be made again."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import DiskError, InputError
from harness.search_space import is_sweep
from harness.tracking.disk_use import OF_A_RUN, Amount, Parts, prune, refusal
from harness.tracking.run_folders import find_runs
from harness.tuning.kept_trials import parts_of_trials
from harness.tuning.sweep_dir import SweepDirectory


@dataclass
class Pruned:
    """What was removed, or can be."""

    amount: Amount = field(default_factory=Amount)
    num_runs: int = 0  # finished ones that were looked at
    left: list[tuple[Path, str]] = field(default_factory=list)  # left as they are, and why


def prune_all(tops: Sequence[Path], *, really: bool) -> Pruned:
    """Look at the finished runs and searches in some folders, and free what can be made again.

    What is unfinished, a link or another user's is left as it is.

    Args:
        tops: runs, searches, or folders of them.
        really: whether to remove it; else it is only counted.
    """
    done = Pruned()
    for folder in find_runs(tops, in_sweeps=("winner",)):
        try:
            why = refusal(folder)
            if not why and (search := _unfinished_search(folder)):
                why = f"belongs to {search}, which is unfinished"
            if why:
                done.left.append((folder, why))
            elif is_sweep(folder):
                _prune_sweep(SweepDirectory(folder), done, really=really)
            else:
                _prune(folder, OF_A_RUN, done, really=really)
        except FileNotFoundError:  # it was removed meanwhile
            continue
        except OSError as error:  # a disk may fail for one and not for the others
            done.left.append((folder, f"can't be read: {error.strerror}"))
    return done


def _prune_sweep(sweep: SweepDirectory, done: Pruned, *, really: bool) -> None:
    real = sweep.folder.resolve()
    try:
        trials = parts_of_trials(sweep)
    except InputError:  # which trials are the best is not known
        done.left.append((sweep.folder, "has a broken search.toml"))
        return
    except DiskError:
        done.left.append((sweep.folder, "has trials that can't be read"))
        return
    for folder, parts in trials.items():
        if folder.resolve() != real / folder.relative_to(sweep.folder):
            done.left.append((folder, "is behind a link"))
        elif sweep.finished():  # it may have been given more trials meanwhile
            _prune(folder, parts, done, really=really)


def _prune(folder: Path, parts: Parts, done: Pruned, *, really: bool) -> None:
    done.amount += prune(folder, parts, really=really)
    done.num_runs += 1


def _unfinished_search(folder: Path) -> Path | None:
    """The search that a trial belongs to, while it is searched."""
    sweeps = [above for above in folder.absolute().parents[:4] if is_sweep(above)]
    return next((each for each in sweeps if not SweepDirectory(each).finished()), None)
