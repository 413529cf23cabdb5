"""The recurrent layers of a model, and the kernels that compute them."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf
from keras.layers import LSTM, RNN, Bidirectional, SimpleRNN

from harness.layers import all_layers

# From a layer, its words, `[time, batch, features]`, and its first states to its outputs,
# `[time, batch, units]`, and its last states.
Compute = Callable[[LSTM, tf.Tensor, list[tf.Tensor]], tuple[tf.Tensor, list[tf.Tensor]]]


def recurrent_layers(model: keras.Model) -> list[keras.Layer]:
    """The model's recurrent layers, in order."""
    return [layer for layer in model.layers if isinstance(layer, RNN | Bidirectional)]


def turn_cudnn_off(model: keras.Model) -> None:
    """Let recurrent layers use plain TensorFlow on a GPU too, where Keras would put in cuDNN.

    XLA can't compile cuDNN, and a CPU can't run it.
    """
    for layer in _with_directions(model):
        if hasattr(layer, "use_cudnn"):
            layer.use_cudnn = False


def use_block_kernel(model: keras.Model) -> None:
    """Have LSTM layers compute all words in one operation, TensorFlow's kernel BlockLSTM.

    A loop starts dozens of operations for each word instead. The layers are those of the five
    networks: the kernel knows no other activations, and no dropout inside.
    """
    _replace_loops(model, _block_lstm)


def use_cudnn_rnn(model: keras.Model) -> None:
    """Have plain RNN layers on a GPU compute all words in one operation, that of cuDNN.

    Keras uses cuDNN for LSTM and GRU alone. A loop starts kernels for each word, and the loop that
    XLA compiles also waits for the host at each word of the backward pass.

    Args:
        model: or such a layer.
    """
    for layer in (model, *_with_directions(model)):
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
    """What `SimpleRNN.inner_loop` gives: the last output, all outputs over time, the last state."""
    if mask is not None:
        kept: tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]
        kept = SimpleRNN.inner_loop(layer, sequences, initial_state, mask, training)
        return kept
    if layer.go_backwards:
        sequences = tf.reverse(sequences, [1])
    num_examples, num_words = tf.shape(sequences)[0], tf.shape(sequences)[1]
    found = tf.raw_ops.CudnnRNNV3(
        input=sequences,
        input_h=initial_state[0][:, None],
        input_c=0,
        params=cudnn_parameters(layer),
        sequence_lengths=tf.fill([num_examples], num_words),
        rnn_mode="rnn_tanh",
        time_major=False,
        is_training=True,  # as Keras has it: without, there is no gradient
    )
    last = found.output_h[:, 0]
    return last, found.output if layer.return_sequences else last[:, None], [last]


def cudnn_parameters(layer: SimpleRNN) -> tf.Tensor:
    """The weights of a plain RNN as cuDNN takes them, `[units * (features + units + 2)]`.

    `[units, features]` of the words, `[units, units]` of the state, and a bias for each of both.
    """
    kernel, recurrent, bias = (
        keras.ops.convert_to_tensor(each)
        for each in (layer.cell.kernel, layer.cell.recurrent_kernel, layer.cell.bias)
    )
    matrices = [tf.reshape(tf.transpose(each), [-1]) for each in (kernel, recurrent)]
    return tf.concat([*matrices, bias, tf.zeros_like(bias)], axis=0)


def _cudnn_takes(layer: SimpleRNN) -> bool:
    """Whether a plain RNN has no setting that cuDNN lacks."""
    cell = layer.cell
    drops = layer.unroll or cell.dropout or cell.recurrent_dropout
    return cell.activation is keras.activations.tanh and cell.use_bias and not drops


def compute_in_float32(model: keras.Model) -> list[str]:
    """Have recurrent layers whose precision is bfloat16 compute in float32, and name them.

    TensorFlow gives the backward pass of cuDNN's recurrent layers in bfloat16 another reserve space
    than the one that their forward pass filled (cudnn_rnn_ops.cc), so gradients are wrong. The
    layers around them keep their precision.
    """
    found = []
    for layer in all_layers(model):
        if isinstance(layer, RNN | Bidirectional) and layer.compute_dtype == "bfloat16":
            for part in layer._flatten_layers():  # its cells and directions too
                part.dtype_policy = "float32"
            found.append(layer.name)
    return found


def use_turns_of_two(model: keras.Model) -> None:
    """Have LSTM layers compute two words in each turn of their loop.

    Compiled by XLA, such a loop takes a sixth less time; those of other layers take the same. The
    layers are those of the five networks: without dropout inside, without a mask.
    """
    _replace_loops(model, _turns_of_two)


def _replace_loops(model: keras.Model, compute: Compute) -> None:
    for layer in _with_directions(model):
        if isinstance(layer, LSTM):
            layer.inner_loop = functools.partial(_inner_loop, layer, compute)


def _inner_loop(
    layer: LSTM,
    compute: Compute,
    *,
    sequences: tf.Tensor,
    initial_state: list[tf.Tensor],
    mask: tf.Tensor | None,
    training: bool = False,
) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
    """What `LSTM.inner_loop` gives: the last output, all outputs over time, the last states."""
    if mask is not None:
        raise RuntimeError(f"{layer.name}: its loop takes no mask")
    outputs, states = compute(layer, tf.transpose(sequences, [1, 0, 2]), initial_state)
    last = states[0]
    kept = tf.transpose(outputs, [1, 0, 2]) if layer.return_sequences else last[:, None]
    return last, kept, states


def _turns_of_two(
    layer: LSTM, words: tf.Tensor, initial_state: list[tf.Tensor]
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Two words in each turn.

    A backward layer reads from the end: with a reversed copy of the words a bidirectional one takes
    a third longer.
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
    for size in (2, 1):  # by one the last of an odd number
        values = tf.while_loop(
            lambda at, *_, size=size: at + size <= num_words, functools.partial(turn, size), values
        )
    _, outputs, *states = values
    return outputs.stack(), states


def _block_lstm(
    layer: LSTM, words: tf.Tensor, initial_state: list[tf.Tensor]
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """All words in one operation.

    The kernel has its gates in another order than Keras. Its second version is not used, because
    the gradient that TensorFlow has for it is that of the first.
    """
    if layer.go_backwards:
        words = tf.reverse(words, [0])
    cell, no_peephole = layer.cell, tf.zeros([layer.units])
    hidden, carry = initial_state
    found = tf.raw_ops.BlockLSTM(
        seq_len_max=tf.cast(tf.shape(words)[0], tf.int64),
        x=words,
        cs_prev=carry,
        h_prev=hidden,
        w=_in_blocks_order(keras.ops.concatenate([cell.kernel, cell.recurrent_kernel], axis=0)),
        wci=no_peephole,
        wcf=no_peephole,
        wco=no_peephole,
        b=_in_blocks_order(keras.ops.convert_to_tensor(cell.bias)),
        forget_bias=0.0,  # Keras has it in the bias
        cell_clip=-1.0,  # no clipping
    )
    return found.h, [found.h[-1], found.cs[-1]]


def _in_blocks_order(gates: tf.Tensor) -> tf.Tensor:
    """Input, candidate, forget and output gate, of Keras's input, forget, candidate and output."""
    input_gate, forget, candidate, output = tf.split(gates, 4, axis=-1)
    return tf.concat([input_gate, candidate, forget, output], axis=-1)


def _with_directions(model: keras.Model) -> Iterator[keras.Layer]:
    """Every layer of the model, and both directions of bidirectional ones."""
    for layer in all_layers(model):
        yield layer
        for name in ("forward_layer", "backward_layer"):
            if hasattr(layer, name):
                yield getattr(layer, name)


def count_parameters(model: keras.Model) -> dict[str, int]:
    """How many parameters the model has, in all and in its recurrent layers."""
    recurrent = sum(layer.count_params() for layer in recurrent_layers(model))
    return {"parameters": model.count_params(), "recurrent_parameters": recurrent}


def count_kernels(graph: tf.Graph, layers: list[keras.Layer], kernel: str) -> dict[str, int]:
    """How many kernels whose names begin so the forward pass runs in each layer.

    The fewest on any replica. A node is named `model/layer/…`, but TensorFlow numbers a scope that
    it sees again: `lstm` can appear as `lstm_1`, or as `lstm_2` next to another layer's `lstm_1_1`.
    So scopes and layers with the same base name, such as `lstm`, are matched by their order.
    """
    counts: dict[str, int] = {}
    for function in graph.as_graph_def().library.function:
        paths = [(node.op, node.name.split("/")) for node in function.node_def]
        forward = [(op, path[1]) for op, path in paths if path[1:] and path[0] != "gradient_tape"]
        fused = [scope for op, scope in forward if op.startswith(kernel)]
        scopes = list(dict.fromkeys(scope for _, scope in forward))
        for base in {_base(layer.name) for layer in layers}:
            names = [layer.name for layer in layers if _base(layer.name) == base]
            matching = [scope for scope in scopes if _base(scope) == base]
            if len(names) == len(matching):  # else it is a part, such as the body of a loop
                for name, scope in zip(names, matching, strict=True):
                    num = fused.count(scope)
                    counts[name] = min(num, counts.get(name, num))
    return {layer.name: counts.get(layer.name, 0) for layer in layers}


def _base(name: str) -> str:
    return re.sub(r"(_\d+)+$", "", name)


def kernels_of(model: keras.Model, graph: tf.Graph, way: str) -> dict[str, str]:
    """The kernel of each recurrent layer of a model, read from the traced graph of its step.

    `cudnn`: NVIDIA's fused kernel; `block`: TensorFlow's on a CPU; `xla`: the compiled loop;
    `loop`: a loop of TensorFlow operations.
    """
    layers = recurrent_layers(model)
    usual = "xla" if way == "xla" else "loop"
    kernels = dict.fromkeys((layer.name for layer in layers), usual)
    for name, kernel in (("cudnn", "CudnnRNN"), ("block", "BlockLSTM")):
        counts = count_kernels(graph, layers, kernel)
        for layer in layers:
            directions = 2 if isinstance(layer, Bidirectional) else 1
            if counts[layer.name] >= directions:
                kernels[layer.name] = name
    return kernels


def why_slow(kernels: Mapping[str, str]) -> str:
    """Which layers cuDNN does not compute on a GPU, and what mends it; empty if it computes all.

    Args:
        kernels: as `kernels_of` gives them.
    """
    names = ", ".join(name for name, kernel in kernels.items() if kernel != "cudnn")
    if not names:
        return ""
    return (
        f"{names}: slow on a GPU, because a loop computes word after word, not cuDNN; set "
        "model.reset_after = true and train.xla = auto; in a network of your own leave activations "
        "and biases as Keras has them, and masks, recurrent_dropout and unroll out; or use a CPU"
    )
