// libcublasLt.so.12
#include "null.h"

MAKES_HANDLE(cublasLtCreate)
MAKES_HANDLE(cublasLtMatrixLayoutCreate)
MAKES_HANDLE(cublasLtMatmulDescCreate)
MAKES_HANDLE(cublasLtMatmulPreferenceCreate)

size_t cublasLtGetVersion(void) { return 120903; }

// Returns one algorithm, described by zeros.
int cublasLtMatmulAlgoGetHeuristic(
    void *h, void *m, void *a, void *b, void *c, void *d, void *p, int asked, char *results, int *num) {
    CALL();
    memset(results, 0, 128);
    *num = 1;
    return 0;
}
