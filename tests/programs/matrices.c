/* Matrix multiplication, as the first checkpointing programs were measured with: C = A B, square, of 4-byte numbers.
   arguments: rows, "own" or (compiled with -DBLAS -lopenblas) "blas". Goes on until it may look whether all is as it was. */
#include "probe.h"
#ifdef BLAS
#include <cblas.h>
#endif

#define BLOCK 8 /* rows of the product that are made at once */

static float *a, *b, *c;
static size_t rows;

static void multiply(size_t from) {
    size_t count = rows - from < BLOCK ? rows - from : BLOCK;
#ifdef BLAS
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)count, (int)rows, (int)rows, 1.0f, a + from * rows,
                (int)rows, b, (int)rows, 0.0f, c + from * rows, (int)rows);
#else
    for (size_t i = from; i < from + count; i++) {
        memset(c + i * rows, 0, rows * sizeof *c);
        for (size_t k = 0; k < rows; k++) {
            float factor = a[i * rows + k];
            for (size_t j = 0; j < rows; j++) c[i * rows + j] += factor * b[k * rows + j];
        }
    }
#endif
}

static uint64_t sum(const float *matrix, size_t count) {
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, matrix + i, sizeof bits);
        sum = sum * 31 + bits;
    }
    return sum;
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    rows = argc > 2 ? (size_t)atol(argv[2]) : 1000;
    size_t cells = rows * rows;
    a = malloc(cells * sizeof *a), b = malloc(cells * sizeof *b), c = malloc(cells * sizeof *c);
    CHECK(a && b && c, "no memory for 3 matrices of %zu rows", rows);
    for (size_t i = 0; i < cells; i++) {
        a[i] = (float)(probe_mix(i) >> 40) / 16777216.0f;
        b[i] = (float)(probe_mix(~i) >> 40) / 16777216.0f;
        c[i] = (float)i;
    }
    uint64_t factors = sum(a, cells) ^ sum(b, cells);
    multiply(0);
    uint64_t first = sum(c, rows);
    probe_ready();
    size_t at = BLOCK;
    while (!probe_resumed()) {
        multiply(at < rows ? at : 0);
        at = at < rows ? at + BLOCK : BLOCK;
    }
    CHECK((sum(a, cells) ^ sum(b, cells)) == factors, "a factor is another");
    CHECK(sum(c, rows) == first, "the first row of the product is another");
    multiply(0);
    CHECK(sum(c, rows) == first, "the first row comes out otherwise now");
    return probe_pass();
}
