/* A program that writes two files for a long time: it appends to `log` and changes blocks of `state` in place, step by step, from what
   it reads in `input`. Its files in the end say whether any step was lost or done twice. It stands still, at any step after the
   READY, as long as a file `hold` is there. */
#include "probe.h"

#define FIRST 200
#define LAST 1200
#define BLOCKS 1024
#define BLOCK 4096
#define LINE 600

static void step(int log, int state, int input, int number) {
    static char block[BLOCK];
    char line[LINE], seed;
    TRY(pread(input, &seed, 1, number % 1000));
    memset(line, 'a' + (number + seed) % 26, sizeof line);
    snprintf(line, sizeof line, "step %d of %d, by way of %d", number, LAST, seed);
    line[LINE - 1] = '\n';
    CHECK(write(log, line, sizeof line) == LINE, "log: %s", strerror(errno));
    memset(block, number + seed, sizeof block);
    memcpy(block, &number, sizeof number);
    CHECK(pwrite(state, block, BLOCK, (off_t)(number * 7 % BLOCKS) * BLOCK) == BLOCK, "state: %s", strerror(errno));
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    int log = TRY(open("log", O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0644));
    int state = TRY(open("state", O_RDWR | O_CREAT | O_TRUNC, 0600));
    int input = TRY(open("input", O_RDONLY));
    TRY(ftruncate(state, BLOCKS * BLOCK));
    struct stat facts;
    for (int number = 0; number < LAST; number++) {
        if (number == FIRST) probe_ready();
        while (number >= FIRST && stat("hold", &facts) == 0) usleep(500);
        step(log, state, input, number);
    }
    TRY(fstat(log, &facts));
    CHECK(facts.st_size == (off_t)LAST * LINE, "log has %ld bytes, not %d", (long)facts.st_size, LAST * LINE);
    while (!probe_resumed()) usleep(500);
    return probe_pass();
}
