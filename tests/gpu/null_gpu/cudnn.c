// libcudnn.so.9: with STUB_RNN=1 it prints the calls of its recurrent layers.
#include "null.h"

static struct { int mode, dtype, num_inputs, num_units; } rnn; // the last described layer
static const int FILL = 0xAB; // the byte that a forward pass writes into its reserve space

size_t cudnnGetVersion(void) { return 92800; }
size_t cudnnGetCudartVersion(void) { return 12090; }
const char *cudnnGetErrorString(int status) { return "stub"; }

int cudnnGetProperty(int part, int *value) {
    CALL();
    *value = part == 0 ? 9 : part == 1 ? 28 : 0;
    return 0;
}

int cudnnDropoutGetStatesSize(void *handle, size_t *bytes) {
    CALL();
    *bytes = 4096;
    return 0;
}

int cudnnSetRNNDescriptor_v8(
    void *rnn_descriptor, int algorithm, int mode, int bias, int direction, int input_mode, int dtype,
    int precision, int math, int num_inputs, int num_units, int projection, int layers, void *dropout,
    unsigned flags) {
    CALL();
    rnn = (typeof(rnn)){mode, dtype, num_inputs, num_units};
    null_say("STUB_RNN", "RNN mode=%d bias=%d dtype=%d precision=%d math=%d inputs=%d units=%d\n",
             mode, bias, dtype, precision, math, num_inputs, num_units);
    return 0;
}

int cudnnGetRNNWeightSpaceSize(void *handle, void *descriptor, size_t *bytes) {
    CALL();
    int gates = rnn.mode == 2 ? 4 : rnn.mode == 3 ? 3 : 1; // LSTM, GRU, plain RNN
    int size = rnn.dtype == 2 ? 2 : rnn.dtype == 1 ? 8 : 4; // half, double, float
    size_t num = rnn.num_inputs * rnn.num_units + rnn.num_units * rnn.num_units + 2 * rnn.num_units;
    *bytes = gates * num * size;
    return 0;
}

int cudnnGetRNNTempSpaceSizes(void *h, void *d, int m, void *x, size_t *work, size_t *reserve) {
    CALL();
    const char *bytes = getenv("STUB_RESERVE");
    if (work)
        *work = 1 << 20;
    if (reserve)
        *reserve = bytes ? (size_t)atol(bytes) : 1 << 20;
    return 0;
}

int cudnnGetTensorNdDescriptor(void *d, int asked, int *dtype, int *num, int *sizes, int *strides) {
    CALL();
    if (dtype)
        *dtype = 0;
    if (num)
        *num = 3;
    for (int i = 0; i < 3 && i < asked; i++) {
        if (sizes)
            sizes[i] = 1;
        if (strides)
            strides[i] = 1;
    }
    return 0;
}

int cudnnRNNForward(
    void *handle, void *descriptor, int mode, void *lengths, void *xd, void *x, void *yd, void *y,
    void *hd, void *hx, void *hy, void *cd, void *cx, void *cy, size_t weights, void *w, size_t work,
    void *k, size_t bytes, void *reserve) {
    CALL();
    if (reserve)
        memset(reserve, FILL, bytes);
    null_say("STUB_RNN", "FORWARD mode=%d weights=%zu reserve=%p size=%zu dtype=%d\n", mode, weights,
             reserve, bytes, rnn.dtype);
    return 0;
}

int cudnnRNNBackwardData_v8(
    void *handle, void *descriptor, void *lengths, void *yd, void *y, void *dy, void *xd, void *dx,
    void *hd, void *hx, void *dhy, void *dhx, void *cd, void *cx, void *dcy, void *dcx,
    size_t weights, void *w, size_t work, void *k, size_t bytes, void *reserve) {
    CALL();
    size_t kept = 0;
    for (size_t i = 0; i < bytes; i++)
        kept += ((unsigned char *)reserve)[i] == FILL;
    null_say("STUB_RNN", "BACKWARD reserve=%p size=%zu bytes as the forward pass left them: %zu dtype=%d\n",
             reserve, bytes, kept, rnn.dtype);
    return 0;
}
