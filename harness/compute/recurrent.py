"""Finds the recurrent layers of a model and selects the kernels that compute them."""

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf
from keras.layers import LSTM, RNN, Bidirectional, SimpleRNN

from harness.layers import all_layers

# A function that takes a layer, the layer's input, `[time, batch, features]`, and the layer's
# initial states; it returns the outputs, `[time, batch, units]`, and the last states.
Compute = Callable[[LSTM, tf.Tensor, list[tf.Tensor]], tuple[tf.Tensor, list[tf.Tensor]]]
FUSED = {"cudnn": "CudnnRNN", "block": "BlockLSTM"}  # kernel -> prefix of its operation types


def recurrent_layers(model: keras.Model) -> list[keras.Layer]:
    """Return the model's recurrent layers, in order, without the layers of nested models."""
    return [layer for layer in model.layers if isinstance(layer, RNN | Bidirectional)]


def turn_cudnn_off(model: keras.Model) -> None:
    """Let recurrent layers use TensorFlow's operations instead of cuDNN, even on a GPU.

    XLA can't compile cuDNN's kernels, and a CPU can't run them.
    """
    for layer in all_layers(model):
        if hasattr(layer, "use_cudnn"):
            layer.use_cudnn = False


def use_cudnn_rnn(model: keras.Model) -> None:
    """Let plain RNN layers on a GPU process all words in one operation of cuDNN.

    Keras uses cuDNN only for LSTM and GRU. For a plain RNN, Keras uses a loop, which starts kernels
    for each word. If XLA compiled Keras's loop, the loop would still be slow, because its backward
    pass would wait for the host at each word.

    Args:
        model: a model or a plain RNN layer.
    """
    for layer in (model, *all_layers(model)):
        if type(layer) is SimpleRNN and _cudnn_takes(layer):
            layer.inner_loop = functools.partial(_cudnn_rnn, layer)


def _cudnn_rnn(
    layer: SimpleRNN,
    *,
    sequences: tf.Tensor,
    initial_state: list[tf.Tensor],
    mask: tf.Tensor | None,
    training: bool = False,
) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
    """Compute the last output, all outputs and the last state, as `SimpleRNN.inner_loop` does.

    cuDNN's parameters are, in this order, the input matrix `[units, features]`, the state matrix
    `[units, units]`, Keras's bias `[units]`, and zeros `[units]` for cuDNN's second bias.
    """
    if mask is not None:
        by_loop: tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]
        by_loop = SimpleRNN.inner_loop(layer, sequences, initial_state, mask, training)
        return by_loop
    if layer.go_backwards:
        sequences = tf.reverse(sequences, [1])
    num_examples, num_words = tf.shape(sequences)[0], tf.shape(sequences)[1]
    kernel, recurrent, bias = (
        keras.ops.convert_to_tensor(each)
        for each in (layer.cell.kernel, layer.cell.recurrent_kernel, layer.cell.bias)
    )
    matrices = [tf.reshape(tf.transpose(each), [-1]) for each in (kernel, recurrent)]
    result = tf.raw_ops.CudnnRNNV3(
        input=sequences,
        input_h=initial_state[0][:, None],
        input_c=0,
        params=tf.concat([*matrices, bias, tf.zeros_like(bias)], axis=0),
        sequence_lengths=tf.fill([num_examples], num_words),
        rnn_mode="rnn_tanh",
        time_major=False,
        is_training=True,  # cuDNN computes no gradient without this flag
    )
    last = result.output_h[:, 0]
    return last, result.output if layer.return_sequences else last[:, None], [last]


def _cudnn_takes(layer: SimpleRNN) -> bool:
    """Whether cuDNN supports the settings of a plain RNN layer."""
    cell = layer.cell
    drops = layer.unroll or cell.dropout or cell.recurrent_dropout
    return cell.activation is keras.activations.tanh and cell.use_bias and not drops


def compute_in_float32(model: keras.Model) -> list[str]:
    """Let recurrent layers in bfloat16 compute in float32, and return their names.

    In bfloat16, the gradients of cuDNN's recurrent layers are wrong, because TensorFlow does not
    pass the buffer ("reserve space") of the forward pass to the backward pass (cudnn_rnn_ops.cc).
    Layers that are not recurrent keep their precision.
    """
    names = []
    for layer in all_layers(model):
        if isinstance(layer, RNN | Bidirectional) and layer.compute_dtype == "bfloat16":
            # The parts are the layer itself, its cells, and a bidirectional layer's two layers.
            for part in layer._flatten_layers():
                part.dtype_policy = "float32"
            names.append(layer.name)
    return names


def replace_loops(model: keras.Model, compute: Compute) -> None:
    """Let LSTM layers compute their outputs with `block_lstm` or `turns_of_two`.

    The replacements are faster than Keras's loop, which starts dozens of operations per word. Call
    this function only for the five built-in networks: the replacements support no masks, no
    activations other than the defaults, and no `dropout` or `recurrent_dropout`.
    """
    for layer in all_layers(model):
        if isinstance(layer, LSTM):
            layer.inner_loop = functools.partial(_inner_loop, layer, compute)


def _inner_loop(
    layer: LSTM,
    compute: Compute,
    *,
    sequences: tf.Tensor,
    initial_state: list[tf.Tensor],
    **_: Any,  # `mask` and `training`, which have no effect in these layers
) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
    """Compute the last output, all outputs and the last states, as `LSTM.inner_loop` does."""
    outputs, states = compute(layer, tf.transpose(sequences, [1, 0, 2]), initial_state)
    last = states[0]
    kept = tf.transpose(outputs, [1, 0, 2]) if layer.return_sequences else last[:, None]
    return last, kept, states


def turns_of_two(
    layer: LSTM, words: tf.Tensor, initial_state: list[tf.Tensor]
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Compute an LSTM layer; process two words per iteration of the loop.

    If XLA compiles the loop of an LSTM layer, the loop takes a sixth less time with two words per
    iteration than with one. The loop of a plain RNN or GRU layer would not be faster with two
    words per iteration than with one.

    A layer with `go_backwards` reads its input from the end. Keras's layer reads a reversed copy of
    its input; with such copies, a bidirectional layer takes a third longer.
    """
    num_words = tf.shape(words)[0]
    num_kept = num_words if layer.return_sequences else 1
    outputs = tf.TensorArray(layer.compute_dtype, num_kept, element_shape=initial_state[0].shape)

    def turn(size: int, at: tf.Tensor, outputs: tf.TensorArray, *states: Any) -> tuple[Any, ...]:
        for _ in range(size):
            word = words[num_words - 1 - at if layer.go_backwards else at]
            output, states = layer.cell(word, states, training=False)
            if layer.return_sequences:
                outputs = outputs.write(at, output)
            at += 1
        return (at, outputs, *states)

    values: Any = (0, outputs, *initial_state)
    for size in (2, 1):  # if `num_words` is odd, the second loop computes the last word
        values = tf.while_loop(
            lambda at, *_, size=size: at + size <= num_words, functools.partial(turn, size), values
        )
    _, outputs, *states = values
    return outputs.stack(), states


def block_lstm(
    layer: LSTM, words: tf.Tensor, initial_state: list[tf.Tensor]
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Compute an LSTM layer; process all words in one operation, TensorFlow's BlockLSTM.

    BlockLSTM orders the gates differently from Keras. BlockLSTMV2 is not used, because its
    gradient is wrong: TensorFlow computes the gradient of BlockLSTMV2 with BlockLSTM's gradient
    kernel, but the two operations order the gates differently.
    """
    if layer.go_backwards:
        words = tf.reverse(words, [0])
    cell, no_peephole = layer.cell, tf.zeros([layer.units])
    hidden, carry = initial_state
    result = tf.raw_ops.BlockLSTM(
        seq_len_max=tf.cast(tf.shape(words)[0], tf.int64),
        x=words,
        cs_prev=carry,
        h_prev=hidden,
        w=_in_blocks_order(keras.ops.concatenate([cell.kernel, cell.recurrent_kernel], axis=0)),
        wci=no_peephole,
        wcf=no_peephole,
        wco=no_peephole,
        b=_in_blocks_order(keras.ops.convert_to_tensor(cell.bias)),
        forget_bias=0.0,  # Keras's bias contains the forget bias
        cell_clip=-1.0,  # no clipping
    )
    return result.h, [result.h[-1], result.cs[-1]]


def _in_blocks_order(gates: tf.Tensor) -> tf.Tensor:
    """Reorder Keras's gates (input, forget, candidate, output) as BlockLSTM expects them."""
    input_gate, forget, candidate, output = tf.split(gates, 4, axis=-1)
    return tf.concat([input_gate, candidate, forget, output], axis=-1)


def count_parameters(model: keras.Model) -> dict[str, int]:
    """Count the parameters of the model and of its `recurrent_layers`."""
    recurrent = sum(layer.count_params() for layer in recurrent_layers(model))
    return {"parameters": model.count_params(), "recurrent_parameters": recurrent}


def kernels_of(model: keras.Model, graph: tf.Graph, way: str) -> dict[str, str]:
    """Return the kernel that computes each recurrent layer in the traced graph of a step.

    `cudnn`: NVIDIA's fused kernel; `block`: TensorFlow's fused kernel on a CPU; `xla`: a loop that
    XLA compiles; `loop`: a loop of TensorFlow operations, without XLA.

    A node of the graph is named `model/scope/…`. The scope is the name of the node's layer, but
    TensorFlow appends a number to a scope whose name is already used. So layers and scopes are
    matched by their names without numbers and by their order: the second `lstm` layer belongs to
    the second `lstm` scope.
    """
    layers = recurrent_layers(model)
    kernels = dict.fromkeys((layer.name for layer in layers), "xla" if way == "xla" else "loop")
    for function in graph.as_graph_def().library.function:
        operations = defaultdict[str, list[str]](list)  # scope -> operations of the forward pass
        for node in function.node_def:
            path = node.name.split("/")
            if path[1:] and path[0] != "gradient_tape":
                operations[path[1]].append(node.op)
        for base in {_base(layer.name) for layer in layers}:
            named = [layer for layer in layers if _base(layer.name) == base]
            scopes = [scope for scope in operations if _base(scope) == base]
            # A graph function whose number of scopes differs from the number of layers is the body
            # of a loop, so its kernels are not counted.
            if len(named) != len(scopes):
                continue
            for layer, scope in zip(named, scopes, strict=True):
                directions = 2 if isinstance(layer, Bidirectional) else 1
                for kernel, prefix in FUSED.items():
                    num = sum(each.startswith(prefix) for each in operations[scope])
                    if num >= directions:
                        kernels[layer.name] = kernel
    return kernels


def _base(name: str) -> str:
    return re.sub(r"(_\d+)+$", "", name)


def why_slow(kernels: Mapping[str, str]) -> str:
    """Return a warning with a remedy if there is a layer that cuDNN does not compute; else "".

    Args:
        kernels: the kernel of each layer, as `kernels_of` returns it.
    """
    names = ", ".join(name for name, kernel in kernels.items() if kernel != "cudnn")
    if not names:
        return ""
    return (
        f"{names}: slow on a GPU, because cuDNN does not compute these layers. To use cuDNN, begin "
        "a new run with train.xla = auto or off. For a GRU, also set model.reset_after = true. In "
        "a custom network, use Keras's default activations and biases, and use no masks, "
        "recurrent_dropout or unroll"
    )
