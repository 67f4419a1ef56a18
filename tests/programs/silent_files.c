/* A file system that answers nothing, not even that it is there: whoever asks it for anything waits in the kernel (state D) until it is
   gone. It goes when the flag file is there, or who started it has ended.
   argument: the folder that it covers. */
#include "probe.h"
#include <sys/mount.h>
#include <sys/prctl.h>

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *folder = argc > 2 ? argv[2] : "silent";
    char options[128];
    int device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (device == -1) skip("/dev/fuse: %s", strerror(errno));
    pid_t parent = getppid();
    CHECK(mkdir(folder, 0700) == 0 || errno == EEXIST, "mkdir: %s", strerror(errno));
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0", device);
    if (mount("silent", folder, "fuse", MS_NOSUID | MS_NODEV, options) == -1) skip("mount: %s", strerror(errno));
    signal(SIGTERM, SIG_IGN);
    probe_ready();
    while (!probe_resumed() && getppid() == parent) usleep(20000);
    TRY(umount2(folder, MNT_DETACH));
    TRY(close(device));
    return probe_pass();
}
