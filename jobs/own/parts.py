"""A callback of one's own, which ends training when the losses part."""

import keras


class StopOverfitting(keras.callbacks.Callback):
    """Ends training when the gap of the losses has been too wide for two epochs in a row."""

    def __init__(self, gap):
        """Take a gap above `gap` for too wide."""
        super().__init__()
        self.gap, self.num_wide = gap, 0

    def on_epoch_end(self, epoch, logs):
        """`logs` has what a line of metrics.jsonl has."""
        is_wide = logs["val_loss"] - logs["loss"] > self.gap
        self.num_wide = self.num_wide + 1 if is_wide else 0
        if self.num_wide == 2:
            self.model.stop_training = True

    def save_state(self):
        """What a resumed run needs, in numbers, texts, lists and dictionaries."""
        return self.num_wide

    def load_state(self, state):
        """Take up what `save_state` gave."""
        self.num_wide = state


def stop_overfitting():
    """The callback of a run."""
    return StopOverfitting(gap=0.3)
