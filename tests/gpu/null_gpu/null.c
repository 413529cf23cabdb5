// Counts calls, makes calls fail or hang, and describes the cards, as these variables say:
//
//   STUB_GPUS=n                     number of GPUs (default 1)
//   STUB_MIG=1                      the driver knows MIG-1 and MIG-2, and CUDA shows one of them
//   STUB_CAPABILITY=10.0            compute capability of each GPU (default 9.0)
//   STUB_FAIL=function:code:after   after `after` calls, each call of the function returns the code
//   STUB_HANG=function:after        after `after` calls, a call of the function never returns
//   STUB_LOG=1                      print each call
//   STUB_COPY=1                     print each copy
//   STUB_RNN=1                      print each call of cuDNN's recurrent layers
//   STUB_RESERVE=bytes              size of cuDNN's reserve space
//   STUB_COUNTS=file                at the end, append a line `pid library function count` for each
//                                   called function
#define LIBRARY "null"
#include "null.h"
#include <pthread.h>
#include <stdarg.h>
#include <unistd.h>

static struct call *calls;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

// Whether `variable` selects this call: `function:after`, or `function:code:after`.
static int is_named(const char *variable, const struct call *call, long count, int *code) {
    const char *text = getenv(variable);
    char name[80];
    long after = 0;
    if (!text)
        return 0;
    int read = code ? sscanf(text, "%79[^:]:%d:%ld", name, code, &after)
                    : sscanf(text, "%79[^:]:%ld", name, &after);
    return read >= 1 + (code != NULL) && !strcmp(name, call->name) && count > after;
}

int null_enter(struct call *call) {
    long count = __sync_add_and_fetch(&call->count, 1);
    if (count == 1) {
        pthread_mutex_lock(&mutex);
        call->next = calls;
        calls = call;
        pthread_mutex_unlock(&mutex);
    }
    null_say("STUB_LOG", "stub %s\n", call->name);
    while (is_named("STUB_HANG", call, count, NULL))
        pause();
    int code = 0;
    return is_named("STUB_FAIL", call, count, &code) ? code : 0;
}

void null_say(const char *variable, const char *format, ...) {
    if (!getenv(variable))
        return;
    va_list values;
    va_start(values, format);
    vfprintf(stderr, format, values);
    va_end(values);
}

// Returns a line `library function count` for each called function, for Python in this process.
const char *null_report(void) {
    static char *text;
    size_t size;
    free(text);
    FILE *file = open_memstream(&text, &size);
    pthread_mutex_lock(&mutex);
    for (struct call *call = calls; call; call = call->next)
        fprintf(file, "%s %s %ld\n", call->library, call->name, call->count);
    pthread_mutex_unlock(&mutex);
    fclose(file);
    return text;
}

__attribute__((destructor)) static void write_counts(void) {
    const char *path = getenv("STUB_COUNTS");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (!file)
        return;
    for (struct call *call = calls; call; call = call->next)
        fprintf(file, "%d %s %s %ld\n", (int)getpid(), call->library, call->name, call->count);
    fclose(file);
}

int null_gpus(void) {
    const char *text = getenv("STUB_GPUS"), *visible = getenv("CUDA_VISIBLE_DEVICES");
    int num = text ? atoi(text) : 1, named = 0;
    if (!visible)
        return num;
    if (getenv("STUB_MIG") && !strncmp(visible, "MIG-", 4))
        return 1; // one instance, even if several are named
    // CUDA ignores all names after the first invalid name. This driver knows no UUIDs.
    for (const char *at = visible; *at >= '0' && *at <= '9' && atoi(at) < num; named++) {
        at += strspn(at, "0123456789");
        at += *at == ',';
    }
    return named;
}

const char *null_name(void) { return "NVIDIA H100 80GB HBM3"; }

static int capability(int part) {
    const char *text = getenv("STUB_CAPABILITY");
    int of[2] = {9, 0};
    if (text)
        sscanf(text, "%d.%d", &of[0], &of[1]);
    return of[part];
}

int null_attribute(int attribute) { // of an H100, by its number in CUdevice_attribute
    switch (attribute) {
    case 1: case 2: case 3: case 111: return 1024; // threads per block (1 to 3)
    case 4: return 64;
    case 5: case 11: return 2147483647;
    case 6: case 7: return 65535;
    case 8: return 49152; // shared memory per block
    case 9: case 12: case 82: return 65536; // constant memory; registers
    case 10: case 106: return 32; // threads per warp (10)
    case 13: return 1980000; // clock rate in kHz
    case 14: return 512;
    case 15: case 19: case 41: return 1;
    case 16: return 132; // multiprocessors
    case 36: return 2619000;
    case 37: return 5120;
    case 38: return 52428800; // L2 cache
    case 39: return 2048;
    case 40: return 3;
    case 75: return capability(0);
    case 76: return capability(1);
    case 78: return 1;
    case 81: return 233472;
    case 97: return 232448;
    default: return 0;
    }
}

static const struct { int code; const char *name, *text; } ERRORS[] = {
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA-capable device(s) is/are busy or unavailable"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the provided PTX was compiled with an unsupported toolchain."},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {802, "CUDA_ERROR_SYSTEM_NOT_READY", "system not yet initialized"},
};
enum { NUM_ERRORS = sizeof ERRORS / sizeof *ERRORS };

const char *null_error_name(int code) {
    for (int i = 0; i < NUM_ERRORS; i++)
        if (ERRORS[i].code == code)
            return ERRORS[i].name;
    return "CUDA_ERROR_UNKNOWN";
}

const char *null_error_text(int code) {
    for (int i = 0; i < NUM_ERRORS; i++)
        if (ERRORS[i].code == code)
            return ERRORS[i].text;
    return "unknown error";
}
