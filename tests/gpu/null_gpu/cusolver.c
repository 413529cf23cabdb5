// libcusolver.so.11: orthogonal matrices are made by it, such as Keras begins recurrent layers with.
#include "null.h"

MAKES_HANDLE(cusolverDnCreate)

int cusolverDnSgeqrf_bufferSize(void *h, int m, int n, void *a, int lda, int *size) {
    CALL();
    *size = 1024;
    return 0;
}

int cusolverDnSorgqr_bufferSize(void *h, int m, int n, int k, void *a, int lda, void *t, int *size) {
    CALL();
    *size = 1024;
    return 0;
}

int cusolverDnSormqr_bufferSize(
    void *h, int side, int trans, int m, int n, int k, void *a, int lda, void *t, void *c, int ldc,
    int *size) {
    CALL();
    *size = 1024;
    return 0;
}
