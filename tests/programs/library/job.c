/* How a recovered program looks to the shell that started it: what it does is in the file go. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(void)
{
    char what[16] = "";
    /* Whoever runs in the background of a script ignores them, and so would this, in every life. */
    signal(SIGINT, SIG_DFL);
    signal(SIGQUIT, SIG_DFL);
    puts("READY");
    fflush(stdout);
    pid_t begun = getpid();
    while (getpid() == begun || access("go", F_OK))
        usleep(1000);
    int go = open("go", O_RDONLY);
    if (go < 0 || read(go, what, sizeof what - 1) < 1)
        return 90;
    close(go);
    int terminal = open("/dev/tty", O_RDWR);
    /* In the foreground, or it would be stopped at its first word to the terminal. */
    if (terminal < 0 || tcgetpgrp(terminal) != getpgrp())
        return 91;
    close(terminal);
    if (!strcmp(what, "exit"))
        return 7;
    if (!strcmp(what, "term"))
        raise(SIGTERM);
    int here = creat("waits", 0644);
    if (here < 0 || close(here))
        return 92;
    while (access("done", F_OK))
        usleep(1000);
    return 8;
}
