// libnccl.so.2: each collective operation returns the GPU's own data to the GPU.
#include "null.h"

static size_t size_of(int type) { // bytes of a value of an ncclDataType_t
    static const size_t SIZES[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
    return SIZES[type];
}

const char *ncclGetErrorString(int code) { return code == 1 ? "unhandled cuda error" : "stub"; }
const char *ncclGetLastError(void *communicator) { return "stub"; }
MAKES_HANDLE(ncclCommInitRank)
MAKES_HANDLE(ncclCommInitRankConfig)
GIVES(ncclGetVersion, int, 23203)

int ncclGetUniqueId(char *id) {
    CALL();
    memset(id, 1, 128);
    return 0;
}

int ncclCommGetAsyncError(void *communicator, int *code) {
    CALL();
    *code = 0;
    return 0;
}

int ncclCommCount(void *communicator, int *num) {
    CALL();
    *num = null_gpus();
    return 0;
}

int ncclAllReduce(const void *from, void *to, size_t num, int type, int op, void *c, void *stream) {
    CALL();
    memmove(to, from, num * size_of(type));
    return 0;
}

int ncclAllGather(const void *from, char *to, size_t num, int type, void *c, void *stream) {
    CALL();
    size_t bytes = num * size_of(type);
    for (int i = 0; i < null_gpus(); i++)
        memmove(to + i * bytes, from, bytes);
    return 0;
}
