/*
 * Writes lines, makes a checkpoint in the midst of them and ends with 1; in its next life it goes on and ends with 0. Its name is the first
 * argument. "errors" has it write the same to its standard error, "wait" has it wait for the file go at the end of its first life, "data" has it write to the file data as well.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

extern int ckpt_here(void) __attribute__((weak));

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "x", *how = argc > 2 ? argv[2] : "";
    int data = strstr(how, "data") ? open("data", O_RDWR | O_CREAT, 0644) : -2;
    if (data == -1 || !ckpt_here)
        return 90;
    setvbuf(stdout, NULL, _IOLBF, 0);
    int errors = strstr(how, "errors") != NULL;
    printf("%s 0\n%s 1\n", name, name);
    if (errors)
        fprintf(stderr, "%s 0\n%s 1\n", name, name);
    int woken = ckpt_here();
    if (woken < 0)
        return 91;
    printf("%s 2\n%s 3\n", name, name);
    if (errors)
        fprintf(stderr, "%s 2\n%s 3\n", name, name);
    if (woken) {
        printf("%s end\n", name);
        return 0;
    }
    while (strstr(how, "wait") && access("go", F_OK))
        usleep(1000);
    return 1;
}
