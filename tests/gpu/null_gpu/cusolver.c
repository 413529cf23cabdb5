// libcusolver.so.11, which makes the orthogonal initial weights of Keras's recurrent layers.
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
