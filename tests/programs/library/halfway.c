/*
 * Has a timer and fills the file data with one letter, makes a checkpoint, fills it with another one and ends with 1. In its next life it
 * ends with 0.
 */
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

extern int ckpt_here(void) __attribute__((weak));

static int fill(int file, char letter)
{
    static char block[1 << 20];
    memset(block, letter, sizeof block);
    for (int i = 0; i < 40; i++)
        if (pwrite(file, block, sizeof block, (off_t)i * (off_t)sizeof block) != sizeof block)
            return -1;
    return 0;
}

int main(void)
{
    int file = open("data", O_RDWR | O_CREAT, 0644);
    struct sigevent silent = {.sigev_notify = SIGEV_NONE};
    timer_t timer;
    if (file < 0 || !ckpt_here || timer_create(CLOCK_MONOTONIC, &silent, &timer) || fill(file, 'a'))
        return 90;
    int woken = ckpt_here();
    if (woken < 0 || fill(file, 'b'))
        return 91;
    return !woken;
}
