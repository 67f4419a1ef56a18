/* Multiplies matrices with OpenBLAS again and again and prints a checksum of each product.
   usage: matmul SIZE ROUNDS */
#include <cblas.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    int size = argc > 1 ? atoi(argv[1]) : 512, rounds = argc > 2 ? atoi(argv[2]) : 20;
    size_t cells = (size_t)size * (size_t)size;
    double *a = malloc(cells * sizeof *a), *b = malloc(cells * sizeof *b), *c = malloc(cells * sizeof *c);
    if (!a || !b || !c) return 1;
    for (size_t i = 0; i < cells; i++) {
        a[i] = (double)(i * 7919 % 1009) / 1009.0 - 0.5;
        b[i] = (double)(i * 104729 % 997) / 997.0 - 0.5;
    }
    for (int round = 0; round < rounds; round++) {
        cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, size, size, size, 1.0, a, size, b, size, 0.0, c, size);
        double sum = 0, largest = 0;
        for (size_t i = 0; i < cells; i++) {
            sum += c[i];
            if (c[i] > largest) largest = c[i];
        }
        /* The product becomes the next factor, scaled so that it neither grows nor vanishes. */
        for (size_t i = 0; i < cells; i++) a[i] = c[i] / (largest > 0 ? largest : 1.0);
        printf("%d %.17g %.17g\n", round, sum, largest);
        fflush(stdout);
    }
    return 0;
}
