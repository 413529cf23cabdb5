"""Errors of a GPU become one line with a remedy; only a broken GPU is the node's fault.

The error messages are TensorFlow's; `tests/gpu` provokes most of them.
"""

import signal
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from harness.compute import device_errors
from harness.compute.device_errors import (
    check_results,
    explained,
    explained_device_errors,
    tell_death,
)
from harness.errors import NodeFault, RunError
from harness.system import stderr_filter
from harness.system.gpu import Memory
from harness.system.stderr_filter import Capture

E = "E0000 00:00:1795935391.288429   24742 "
ECC, FULL = "CUDA_ERROR_ECC_UNCORRECTABLE", "CUDA_ERROR_OUT_OF_MEMORY"
REFUSED = "Failed to call DoRnnForward with model config: [rnn_mode]: 2, 0, 0"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (f"Failed to launch: {ECC}: uncorrectable ECC error", "the GPU's memory is broken"),
        (
            "stream did not block\nCUDA_ERROR_ILLEGAL_ADDRESS: an illegal access\n\t [[{{a}}]]",
            "GPU: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal access; use",
        ),
        ("CUDA_ERROR_NVLINK_UNCORRECTABLE: stub", "the GPU's hardware failed"),
        ("CUDA_ERROR_HARDWARE_STACK_ERROR: stub", "the GPU's hardware failed"),
        ("INTERNAL: hardware stack error", "the GPU's hardware failed: INTERNAL: hardware stack"),
        ("CUDA_ERROR_CONTAINED: stub", "the GPU's hardware failed"),
        ("CUDA_ERROR_ILLEGAL_INSTRUCTION: stub", "a kernel failed on the GPU"),
        ("INTERNAL: an illegal instruction was encountered", "a kernel failed on the GPU"),
        ("CUDA_ERROR_MISALIGNED_ADDRESS: misaligned", "a kernel failed on the GPU"),
        ("Failed to load: CUDA_ERROR_NOT_FOUND: named symbol", "a call of CUDA failed: Failed to"),
        ("CUDA_ERROR_SYSTEM_NOT_READY: system not yet initialized", "the driver has lost the GPU"),
        ("CUDA driver version is insufficient for CUDA runtime version", "driver is too old"),
        ("CUDA_ERROR_UNSUPPORTED_PTX_VERSION: the provided PTX", "driver is too old"),
        ("CUDA_ERROR_NO_BINARY_FOR_GPU: no kernel image is available", "no code for this card"),
        ("all CUDA-capable devices are busy or unavailable", "exclusive compute mode"),
        ("NCCL: unhandled system error. Set NCCL_DEBUG=WARN for details.", "SOCKET_IFNAME=ib0"),
        (REFUSED, "doctor --probe"),
        (
            f"{E}dnn.cc:933] CUDNN_STATUS_EXECUTION_FAILED in cuda_dnn.cc(2026): "
            "'cudnnRNNForward( cudnn.handle(), rnn_desc.handle())'",
            "refused: CUDNN_STATUS_EXECUTION_FAILED in cuda_dnn.cc(2026): cudnnRNNForward; t",
        ),
        ("A deterministic GPU implementation of X is not", "train.deterministic = false"),
        (f"CUDA error: : {FULL}: out of memory", "the device is out of memory; lower train."),
        ("Dst tensor is not initialized.", "the device is out of memory"),
        (f"{E}dnn.cc:933] CUDNN_STATUS_ALLOC_FAILED", "the device is out of memory"),
        (f"{E}dnn.cc:933] <unknown cudnn status: 4004>", "the device is out of memory"),
    ],
)
def test_an_error_of_cuda_is_one_line_with_a_remedy(text: str, part: str) -> None:
    """The line quotes the first message with a reason, without the log's prefix and arguments.

    Only a fault of the hardware or of a kernel is the node's.
    """
    error = explained(text.splitlines())
    assert error is not None
    assert part in str(error)
    assert "\n" not in str(error)
    assert error.exit_code == 1
    of_node = ("memory is broken", "hardware failed", "kernel failed on", "driver has lost")
    assert isinstance(error, NodeFault) == any(each in str(error) for each in of_node)


@pytest.mark.parametrize(
    ("texts", "lasting", "part"),
    [
        ([REFUSED], ECC, "the GPU's memory is broken: CUDA_ERROR_ECC_UNCORRECTABLE; use"),
        (["Dst tensor is not initialized."], ECC, "the GPU's memory is broken"),
        ([REFUSED], FULL, "the device is out of memory"),
        (["No deterministic kernel"], FULL, "an operation has no deterministic kernel here"),
        ([REFUSED], "", "a CUDA library refused"),
    ],
)
def test_the_lasting_error_of_cuda_is_the_cause(texts: list[str], lasting: str, part: str) -> None:
    """It explains errors of libraries and the allocator. A full GPU explains no other errors."""
    assert str(explained(texts, lasting)).startswith(part)


def test_a_full_gpu_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error shows each GPU's free memory, and the processes that use it, if NVML knows them."""
    gpus = {"0": Memory(0.1, 80.0, 39.9, {7: 40.0}), "1": Memory(70.0, 80.0, 0.0, {})}
    monkeypatch.setattr(device_errors, "memory_of_gpus", lambda: gpus)
    full = str(explained([FULL]))
    assert full.startswith("the device is out of memory: GPU 0 has 0.1 of 80.0 GB free, process 7 ")
    assert "; GPU 1 has 70.0 of 80.0 GB free; lower train.batch_size" in full
    assert str(explained([FULL], sees_memory=False)).startswith("the device is out of memory; lowe")


F = "F0000 00:00:1.1 7 reduction_gpu_kernels.cu.h:660] Check failed: launch is OK (INTERNAL: {})\n"
TRACE = "*** Check failure stack trace: ***\n    @ 0x7fe4  absl::LogMessage::Flush()\n"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (F.format("an illegal memory access") + TRACE, "failed on the GPU: INTERNAL: an illegal"),
        (F.format("out of memory") + TRACE, "the device is out of memory"),
        (f"F0000 00:00:1.1 7 event_mgr.cc:228] Unexpected Event status: 1\n{TRACE}", "failed"),
        ("terminate called\n  what():  Bad StatusOr access: out of memory\n", "is out of memory"),
        (f"{E}base_collective_executor.cc:252] Error invoking NCCL: stub\n", "NCCL"),
    ],
)
def test_messages_explain_a_death(text: str, part: str) -> None:
    """The line has no stack trace."""
    with pytest.raises(RunError) as raised:
        tell_death(signal.SIGABRT, text, 7)
    assert part in str(raised.value)
    assert "absl" not in str(raised.value)


def test_an_unexplained_death_has_a_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Warnings explain no death; the line contains TensorFlow's last error message, if any."""
    tell_death(
        signal.SIGSEGV, f"W0000 00:00:1.1 7 a.cc:5] ran out of memory, no failure\n{TRACE}", 7
    )
    assert "TensorFlow's process died of SIGSEGV; if this" in capsys.readouterr().err
    tell_death(signal.SIGABRT, F.format("no such file") + TRACE, 7, go_on="; continue")
    line = capsys.readouterr().err.splitlines()[-1]
    assert "TensorFlow's process died of SIGABRT: INTERNAL: no such file; if this" in line
    assert line.endswith("the lines above; continue")


def test_only_errors_of_devices_are_explained() -> None:
    """Other errors keep their traceback."""
    with pytest.raises(tf.errors.InternalError), explained_device_errors():
        raise tf.errors.InternalError(None, None, "Cannot convert a string to a number")
    with pytest.raises(RunError), explained_device_errors():
        raise tf.errors.InternalError(None, None, "CUDA_ERROR_NO_BINARY_FOR_GPU")
    with pytest.raises(RunError, match="the device is out of memory"), explained_device_errors():
        raise tf.errors.ResourceExhaustedError(None, None, "failed to allocate")


def test_the_place_of_an_operation_explains_no_error(tmp_path: Path) -> None:
    """TensorFlow's error names the files and functions that made a failing operation."""
    path = tmp_path / "deterministic-nccl/net.py"
    code = "def nccl(tf, x):\n    return tf.strings.to_number(x, name='nccl')\n"
    found: dict[str, Any] = {}
    exec(compile(code, path, "exec"), found)  # noqa: S102 - the code is above
    with pytest.raises(tf.errors.InvalidArgumentError, match="a\n"), explained_device_errors():
        tf.function(found["nccl"], autograph=False)(tf, tf.constant("a"))


def test_a_kernel_that_was_not_run_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """TensorFlow only warns, and the operation succeeds although it has written no output."""
    check_results()  # without captured messages there is no error
    with (tmp_path / "messages").open("wb+", buffering=0) as file:
        monkeypatch.setattr(stderr_filter, "captured", Capture(file.fileno()))
        file.write(f"{E}a.cc:1] an error that is none\n".encode())
        check_results()
        assert capsys.readouterr().err.endswith("an error that is none\n")
        warning = "W0000 00:00:1.1 7 tf_gpu_runtime_wrappers.cc:40] "
        call = "'cuModuleLoadData(&module, data)' failed with"
        for code, part in (
            ("CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "driver is too old for this CUDA: cuModuleLoad"),
            (FULL, "the device is out of memory"),
            ("CUDA_ERROR_UNKNOWN", "the GPU could not run a kernel, and TensorFlow continued with"),
        ):
            file.write(f"{warning}{call} '{code}'\n".encode())
            with pytest.raises(RunError, match=part):
                check_results()
        check_results()
