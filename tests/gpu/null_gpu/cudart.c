// The runtime, libcudart.so.12.
#include "null.h"

static __thread int device;

GIVES(cudaRuntimeGetVersion, int, 12090)
GIVES(cudaDriverGetVersion, int, 12090)
GIVES(cudaGetDevice, int, device)
GIVES(cudaGetDeviceCount, int, null_gpus())

int cudaSetDevice(int new) {
    CALL();
    device = new;
    return 0;
}

int cudaDeviceGetAttribute(int *value, int attribute, int of) {
    CALL();
    *value = null_attribute(attribute);
    return 0;
}

const char *cudaGetErrorString(int error) { return null_error_text(error); }
const char *cudaGetErrorName(int error) { return null_error_name(error); }

int cudaFuncGetAttributes(char *attributes, const void *function) { // offsets in struct cudaFuncAttributes
    CALL();
    memset(attributes, 0, 56);
    *(int *)(attributes + 24) = 1024; // threads per block
    *(int *)(attributes + 28) = 32;   // registers
    *(int *)(attributes + 32) = *(int *)(attributes + 36) = 90; // versions of PTX and machine code
    return 0;
}

int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *num, const void *f, int size, size_t bytes) {
    CALL();
    *num = 8;
    return 0;
}

int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int *num, const void *function, int size, size_t bytes, unsigned flags) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(num, function, size, bytes);
}

int cudaGetDeviceProperties_v2(char *to, int of) { // members of cudaDeviceProp that TensorFlow reads
    CALL();
    memset(to, 0, 1008);
    strcpy(to, null_name());
    *(size_t *)(to + 288) = 80ul << 30; // memory
    *(size_t *)(to + 296) = 49152;      // shared memory per block
    *(int *)(to + 304) = 65536;         // registers per block
    *(int *)(to + 308) = 32;            // threads per warp
    *(int *)(to + 320) = 1024;          // threads per block
    for (int i = 0; i < 3; i++) {
        *(int *)(to + 324 + 4 * i) = null_attribute(2 + i);
        *(int *)(to + 336 + 4 * i) = null_attribute(5 + i);
    }
    *(int *)(to + 360) = null_attribute(75);
    *(int *)(to + 364) = null_attribute(76);
    *(int *)(to + 388) = null_attribute(16);
    return 0;
}

int cudaMalloc(void **result, size_t bytes) {
    CALL();
    *result = calloc(1, bytes);
    return 0;
}

int cudaFree(void *memory) {
    CALL();
    free(memory);
    return 0;
}

static int cudaMemcpyAsyncDtoH() { // counts copies to the host under this name
    CALL();
    return 0;
}

int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
    CALL();
    if (kind == 2)
        cudaMemcpyAsyncDtoH();
    memmove(to, from, bytes);
    return 0;
}

int cudaMemcpy(void *to, const void *from, size_t bytes, int kind) {
    return cudaMemcpyAsync(to, from, bytes, kind, NULL);
}

int cudaMemsetAsync(void *to, int value, size_t bytes, void *stream) {
    CALL();
    memset(to, value, bytes);
    return 0;
}

// Kernels

unsigned __cudaPushCallConfiguration() {
    COUNT();
    return 0;
}

int __cudaPopCallConfiguration(void *grid, void *block, size_t *bytes, void **stream) {
    CALL();
    if (bytes)
        *bytes = 0;
    if (stream)
        *stream = NULL;
    return 0;
}

void **__cudaRegisterFatBinary(void *binary) {
    COUNT();
    return calloc(1, 16);
}

MAKES_HANDLE(cudaGetFuncBySymbol)
MAKES_HANDLE(cudaStreamCreateWithFlags)
MAKES_HANDLE(cudaEventCreateWithFlags)

int cudaStreamIsCapturing(void *stream, int *value) {
    CALL();
    *value = 0;
    return 0;
}

int cudaStreamGetCaptureInfo_v2(void *stream, int *value) {
    CALL();
    *value = 0;
    return 0;
}
