// libnvidia-ml.so.1: TensorFlow and the harness ask it about cards and their memory.
#include "null.h"

struct memory { unsigned long long total, free, used; };

int nvmlInit(void) { CALL(); return 0; }
int nvmlInit_v2(void) { CALL(); return 0; }
int nvmlInitWithFlags(unsigned flags) { CALL(); return 0; }
int nvmlShutdown(void) { CALL(); return 0; }
const char *nvmlErrorString(int code) { return "stub"; }

int nvmlDeviceGetCount_v2(unsigned *num) {
    CALL();
    const char *text = getenv("STUB_GPUS"); // NVML ignores CUDA_VISIBLE_DEVICES
    *num = text ? atoi(text) : 1;
    return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    CALL();
    *handle = (void *)(long)(index + 1);
    return 0;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **handle) {
    CALL();
    *handle = (void *)1;
    return 0;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    CALL();
    if (getenv("STUB_MIG") && (!strcmp(uuid, "MIG-1") || !strcmp(uuid, "MIG-2")))
        return 0;
    return 6; // NVML_ERROR_NOT_FOUND
}

int nvmlDeviceGetName(void *handle, char *name, unsigned size) {
    CALL();
    snprintf(name, size, "%s", null_name());
    return 0;
}

int nvmlDeviceGetComputeMode(void *handle, int *mode) {
    CALL();
    *mode = 0; // any number of processes may use the card
    return 0;
}

int nvmlDeviceGetMemoryInfo(void *handle, struct memory *memory) {
    CALL();
    *memory = (struct memory){80ul << 30, 79ul << 30, 1ul << 30};
    return 0;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *num, void *processes) {
    CALL();
    *num = 0;
    return 0;
}

int nvmlSystemGetDriverVersion(char *version, unsigned size) {
    CALL();
    snprintf(version, size, "575.57.08");
    return 0;
}
