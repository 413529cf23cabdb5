"""A custom callback that ends training when the validation loss is far above the training loss."""

import keras


class StopOverfitting(keras.callbacks.Callback):
    """Ends training after two epochs in a row with too wide a gap between the losses."""

    def __init__(self, gap):
        """Set the widest gap that is allowed."""
        super().__init__()
        self.gap, self.num_wide = gap, 0

    def on_epoch_end(self, epoch, logs):
        """`logs` is a line of metrics.jsonl; it has no val_loss if the run has no validation."""
        is_wide = logs.get("val_loss", 0) - logs["loss"] > self.gap
        self.num_wide = self.num_wide + 1 if is_wide else 0
        if self.num_wide == 2:
            self.model.stop_training = True

    def save_state(self):
        """Return the state for a resumed run: numbers, texts, lists and dictionaries."""
        return self.num_wide

    def load_state(self, state):
        """Restore the value of `save_state`."""
        self.num_wide = state


def stop_overfitting():
    """Return the callback of a run."""
    return StopOverfitting(gap=0.3)
