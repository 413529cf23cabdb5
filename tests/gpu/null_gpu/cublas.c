// libcublas.so.12
#include "null.h"

MAKES_HANDLE(cublasCreate_v2)

const char *cublasGetStatusString(int status) { // TensorFlow shows only this text
    return status == 1    ? "the library was not initialized"
           : status == 3  ? "the resource allocation failed"
           : status == 13 ? "the function failed to launch on the GPU"
                          : "stub";
}

int cublasGetMathMode(void *handle, int *mode) {
    CALL();
    *mode = 0;
    return 0;
}

int cublasGetVersion_v2(void *handle, int *version) {
    CALL();
    *version = 120903;
    return 0;
}

int cublasGetProperty(int part, int *value) {
    CALL();
    *value = part == 0 ? 12 : part == 1 ? 9 : 3;
    return 0;
}
