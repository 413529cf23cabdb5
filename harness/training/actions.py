"""Keras's own callbacks, along with the training loop."""

from collections.abc import Sequence

import keras

from harness.job import TrainConfig


def keras_callbacks(
    train: TrainConfig, model: keras.Model, more: Sequence[keras.callbacks.Callback] = ()
) -> keras.callbacks.CallbackList:
    """Early stopping and learning-rate cuts as the job wants them, on `model` and its optimizer.

    They see epochs alone, and everything they know they have from the epochs' logs: a resumed run
    plays its history to them again and has them as they were.
    """
    mode = "min" if train.monitor == "val_loss" else "max"
    callbacks = list(more)
    if train.early_stopping_patience > 0:
        patience = train.early_stopping_patience
        callbacks.append(keras.callbacks.EarlyStopping(train.monitor, patience=patience, mode=mode))
    if train.reduce_lr_patience > 0:
        callbacks.append(
            keras.callbacks.ReduceLROnPlateau(
                train.monitor,
                factor=train.reduce_lr_factor,
                patience=train.reduce_lr_patience,
                mode=mode,
            )
        )
    return keras.callbacks.CallbackList(callbacks, model=model)
