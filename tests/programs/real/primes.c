/* Prints every 10,000th prime below a limit; the demonstration's program where there is no python3.
   usage: primes LIMIT */
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    long limit = argc > 1 ? atol(argv[1]) : 1000000, count = 0;
    long *primes = malloc((size_t)limit / 2 * sizeof *primes);
    if (!primes) return 1;
    for (long number = 2; number < limit; number++) {
        int prime = 1;
        for (long i = 0; i < count && primes[i] * primes[i] <= number && prime; i++) prime = number % primes[i] != 0;
        if (!prime) continue;
        primes[count++] = number;
        if (count % 10000 == 0) {
            printf("%ld %ld\n", count, number);
            fflush(stdout);
        }
    }
    printf("done %ld\n", count);
    return 0;
}
