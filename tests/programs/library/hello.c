/* A program whose main was renamed: it is ready, waits for the file go in its folder, and passes. */
#include <stdio.h>
#include <unistd.h>

int ckpt_target(int argc, char **argv)
{
    if (argc < 1 || !argv[0])
        return 9;
    puts("READY");
    fflush(stdout);
    while (access("go", F_OK))
        usleep(1000);
    puts("PASS");
    return 0;
}
