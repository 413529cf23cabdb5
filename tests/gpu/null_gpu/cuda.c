// The driver, libcuda.so.1. Device memory is host memory, and a kernel launch does nothing.
#include "null.h"
#include <pthread.h>

static __thread void *context;
static const size_t MEMORY = 80ul << 30, LARGEST = 4ul << 30;

// Devices

GIVES(cuDriverGetVersion, int, 12090)
GIVES(cuDeviceGetCount, int, null_gpus())

// Like the real cuInit, it fails if CUDA_VISIBLE_DEVICES leaves no device.
int cuInit(unsigned flags) {
    CALL();
    return null_gpus() ? 0 : 100;
}

int cuDeviceGet(int *device, int ordinal) {
    CALL();
    *device = ordinal;
    return 0;
}

int cuDeviceGetName(char *name, int size, int device) {
    CALL();
    snprintf(name, size, "%s", null_name());
    return 0;
}

int cuDeviceGetUuid(char *uuid, int device) {
    CALL();
    memset(uuid, device + 1, 16);
    return 0;
}

int cuDeviceGetUuid_v2(char *uuid, int device) { return cuDeviceGetUuid(uuid, device); }

int cuDeviceGetPCIBusId(char *id, int size, int device) {
    CALL();
    snprintf(id, size, "0000:%02x:00.0", 0x65 + device);
    return 0;
}

int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    CALL();
    *bytes = MEMORY;
    return 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    CALL();
    *value = null_attribute(attribute);
    return 0;
}

int cuDeviceComputeCapability(int *major, int *minor, int device) {
    CALL();
    *major = null_attribute(75);
    *minor = null_attribute(76);
    return 0;
}

int cuDeviceGetP2PAttribute(int *value, int attribute, int device, int peer) {
    CALL();
    *value = 1;
    return 0;
}

int cuDeviceCanAccessPeer(int *value, int device, int peer) {
    CALL();
    *value = 1;
    return 0;
}

int cuGetErrorName(int error, const char **name) {
    *name = null_error_name(error);
    return 0;
}

int cuGetErrorString(int error, const char **text) {
    *text = null_error_text(error);
    return 0;
}

// Contexts: 0x1000 for the first device, 0x1001 for the second, …

int cuDevicePrimaryCtxRetain(void **result, int device) {
    CALL();
    *result = (void *)(long)(0x1000 + device);
    return 0;
}

int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    CALL();
    *flags = 0;
    *active = 1;
    return 0;
}

int cuCtxSetCurrent(void *new) {
    CALL();
    context = new;
    return 0;
}

int cuCtxPushCurrent_v2(void *new) { return cuCtxSetCurrent(new); }
GIVES(cuCtxGetCurrent, void *, context)

int cuCtxPopCurrent_v2(void **old) {
    CALL();
    if (old)
        *old = context;
    return 0;
}

GIVES(cuCtxGetDevice, int, context ? (int)((long)context - 0x1000) : 0)

int cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    CALL();
    if (least)
        *least = 0;
    if (greatest)
        *greatest = -5;
    return 0;
}

int cuCtxGetLimit(size_t *value, int limit) {
    CALL();
    *value = 1024;
    return 0;
}

// Memory

int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    CALL();
    *total = MEMORY;
    *free_bytes = MEMORY - (1ul << 30);
    return 0;
}

int cuMemAlloc_v2(void **result, size_t bytes) {
    CALL();
    if (bytes > LARGEST || posix_memalign(result, 512, bytes))
        return 2;
    memset(*result, 0, bytes);
    return 0;
}

int cuMemFree_v2(void *memory) {
    CALL();
    free(memory);
    return 0;
}

int cuMemHostAlloc(void **result, size_t bytes, unsigned flags) {
    CALL();
    return posix_memalign(result, 4096, bytes) ? 2 : 0;
}

int cuMemAllocHost_v2(void **result, size_t bytes) { return cuMemHostAlloc(result, bytes, 0); }
int cuMemFreeHost(void *memory) { return cuMemFree_v2(memory); }

int cuMemHostGetDevicePointer_v2(void **result, void *memory, unsigned flags) {
    CALL();
    *result = memory;
    return 0;
}

int cuMemGetAllocationGranularity(size_t *bytes, void *properties, int option) {
    CALL();
    *bytes = 2 << 20;
    return 0;
}

int cuDeviceGetDefaultMemPool(void **pool, int device) {
    CALL();
    *pool = calloc(1, 8);
    return 0;
}

int cuMemGetAddressRange_v2(void **base, size_t *bytes, void *memory) {
    CALL();
    if (base)
        *base = memory;
    if (bytes)
        *bytes = 1;
    return 0;
}

int cuPointerGetAttribute(void *value, int attribute, void *memory) {
    CALL();
    *(int *)value = attribute == 2 ? 2 : 0; // memory type: 2 = device
    return 0;
}

#define COPIES(function, ...)                                                                      \
    int function(void *to, const void *from, size_t bytes, ##__VA_ARGS__) {                        \
        CALL();                                                                                    \
        null_say("STUB_COPY", "COPY " #function " %zu\n", bytes);                                  \
        memmove(to, from, bytes);                                                                  \
        return 0;                                                                                  \
    }
COPIES(cuMemcpyHtoDAsync_v2, void *stream)
COPIES(cuMemcpyHtoD_v2)
COPIES(cuMemcpyDtoHAsync_v2, void *stream)
COPIES(cuMemcpyDtoH_v2)
COPIES(cuMemcpyDtoDAsync_v2, void *stream)
COPIES(cuMemcpyDtoD_v2)
COPIES(cuMemcpyAsync, void *stream)

int cuMemcpyPeerAsync(void *to, void *there, const void *from, void *here, size_t bytes, void *s) {
    CALL();
    memmove(to, from, bytes);
    return 0;
}

int cuMemsetD8Async(void *to, unsigned char value, size_t num, void *stream) {
    CALL();
    memset(to, value, num);
    return 0;
}

int cuMemsetD8_v2(void *to, unsigned char value, size_t num) {
    return cuMemsetD8Async(to, value, num, NULL);
}

int cuMemsetD32Async(uint32_t *to, unsigned value, size_t num, void *stream) {
    CALL();
    for (size_t i = 0; i < num; i++)
        to[i] = value;
    return 0;
}

int cuMemsetD32_v2(uint32_t *to, unsigned value, size_t num) {
    return cuMemsetD32Async(to, value, num, NULL);
}

// No other function can be looked up: 500 is CUDA_ERROR_NOT_FOUND.

int cuGetProcAddress(const char *name, void **function, int version, uint64_t flags) {
    CALL();
    *function = NULL;
    return 500;
}

int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, void *why) {
    return cuGetProcAddress(name, function, version, flags);
}

int cuGetExportTable(const void **table, const void *id) {
    CALL();
    *table = NULL;
    return 500;
}

// Streams and events: a call does all its work before it returns. Only host functions run later, in
// order, on a thread of their own, because TensorFlow holds locks that they need.

static struct host_call { void (*function)(void *); void *argument; struct host_call *next; } *first, *last;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t arrived = PTHREAD_COND_INITIALIZER;

static void *run_host_calls(void *unused) {
    for (;;) {
        pthread_mutex_lock(&mutex);
        while (!first)
            pthread_cond_wait(&arrived, &mutex);
        struct host_call *call = first;
        first = call->next;
        pthread_mutex_unlock(&mutex);
        call->function(call->argument);
        free(call);
    }
    return NULL;
}

int cuLaunchHostFunc(void *stream, void (*function)(void *), void *argument) {
    CALL();
    static pthread_t thread;
    struct host_call *call = calloc(1, sizeof *call);
    call->function = function;
    call->argument = argument;
    pthread_mutex_lock(&mutex);
    if (!thread)
        pthread_create(&thread, NULL, run_host_calls, NULL);
    if (first)
        last->next = call;
    else
        first = call;
    last = call;
    pthread_cond_signal(&arrived);
    pthread_mutex_unlock(&mutex);
    return 0;
}

MAKES_HANDLE(cuStreamCreate)
MAKES_HANDLE(cuStreamCreateWithPriority)
MAKES_HANDLE(cuEventCreate)

int cuStreamIsCapturing(void *stream, int *value) {
    CALL();
    *value = 0;
    return 0;
}

int cuStreamGetPriority(void *stream, int *value) {
    CALL();
    *value = 0;
    return 0;
}

int cuStreamGetCtx(void *stream, void **result) {
    CALL();
    *result = context;
    return 0;
}

int cuEventElapsedTime(float *ms, void *start, void *end) {
    CALL();
    *ms = 0.1f;
    return 0;
}

int cuEventElapsedTime_v2(float *ms, void *start, void *end) {
    return cuEventElapsedTime(ms, start, end);
}

// Kernels

MAKES_HANDLE(cuModuleLoadData)
MAKES_HANDLE(cuModuleLoadDataEx)
MAKES_HANDLE(cuModuleLoadFatBinary)
MAKES_HANDLE(cuModuleGetFunction)
MAKES_HANDLE(cuLibraryLoadData)
MAKES_HANDLE(cuLibraryGetKernel)
MAKES_HANDLE(cuLibraryGetModule)
MAKES_HANDLE(cuKernelGetFunction)

int cuModuleGetGlobal_v2(void **memory, size_t *bytes, void *module, const char *name) {
    CALL();
    if (memory) { // XLA refuses memory that is not aligned
        *memory = aligned_alloc(4096, 1 << 20);
        memset(*memory, 0, 1 << 20);
    }
    if (bytes)
        *bytes = 1 << 20;
    return 0;
}

int cuFuncGetModule(void **module, void *function) {
    CALL();
    *module = function;
    return 0;
}

int cuFuncGetAttribute(int *value, int attribute, void *function) {
    CALL();
    *value = attribute == 0 ? 1024 : attribute == 4 ? 32 : 0; // 0: threads per block; 4: registers
    return 0;
}

int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *num, void *function, int size, size_t bytes) {
    CALL();
    *num = 8;
    return 0;
}

int cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int *num, void *function, int size, size_t bytes, unsigned flags) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(num, function, size, bytes);
}

// Graphs: each has one node, a kernel.

int cuGraphCreate(void **graph, unsigned flags) {
    CALL();
    *graph = calloc(1, 8);
    return 0;
}

MAKES_HANDLE(cuGraphInstantiate)
MAKES_HANDLE(cuGraphInstantiateWithFlags)

int cuStreamEndCapture(void *stream, void **graph) {
    CALL();
    *graph = calloc(1, 8);
    return 0;
}

int cuGraphGetNodes(void *graph, void **nodes, size_t *num) {
    CALL();
    *num = 1;
    if (nodes)
        *nodes = calloc(1, 8);
    return 0;
}

int cuGraphGetRootNodes(void *graph, void **nodes, size_t *num) {
    return cuGraphGetNodes(graph, nodes, num);
}

int cuGraphNodeGetType(void *node, int *type) {
    CALL();
    *type = 0;
    return 0;
}
