/*
 * Starts a program as containers do where nothing is allowed: in a user namespace without any capability, with no_new_privs, a root that
 * is read-only but for one folder, and a filter that refuses what Docker's refuses by default and does not know clone3 or any newer call.
 *
 *     sandbox FOLDER PROGRAM [ARGUMENT...]
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static void must(int good, const char *what) {
    if (good) return;
    fprintf(stderr, "sandbox: %s: %s\n", what, strerror(errno));
    /* As programs say that they cannot run here. */
    printf("SKIP: no sandbox: %s: %s\n", what, strerror(errno));
    exit(77);
}

static void write_file(const char *path, const char *text) {
    int file = open(path, O_WRONLY);
    must(file >= 0 && write(file, text, strlen(text)) == (ssize_t)strlen(text), path);
    close(file);
}

/* struct mount_attr */
struct attributes { uint64_t set, clear, propagation, userns; };

static void enter(const char *folder) {
    unsigned user = getuid(), group = getgid();
    char map[64];
    must(unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0, "unshare");
    write_file("/proc/self/setgroups", "deny");
    snprintf(map, sizeof map, "%u %u 1", user, user);
    write_file("/proc/self/uid_map", map);
    snprintf(map, sizeof map, "%u %u 1", group, group);
    write_file("/proc/self/gid_map", map);
    must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0, "private mounts");
    must(mount(folder, folder, NULL, MS_BIND, NULL) == 0, "bind");
    must(mount("none", "/dev/shm", "tmpfs", 0, NULL) == 0, "tmpfs");
    struct attributes readonly = {.set = 1}, writable = {.clear = 1};
    must(syscall(SYS_mount_setattr, AT_FDCWD, "/", 0x8000 /* AT_RECURSIVE */, &readonly, sizeof readonly) == 0, "read-only root");
    must(syscall(SYS_mount_setattr, AT_FDCWD, folder, 0, &writable, sizeof writable) == 0, "writable folder");
    must(syscall(SYS_mount_setattr, AT_FDCWD, "/dev/shm", 0, &writable, sizeof writable) == 0, "writable tmpfs");
    must(chdir(folder) == 0, folder);
    int file = open("/.rewake-sandbox", O_WRONLY | O_CREAT, 0600);
    must(file < 0 && (errno == EROFS || errno == EACCES), "the root is writable");
}

static void give_up_rights(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2] = {{0, 0, 0}, {0, 0, 0}};
    for (int capability = 0; prctl(PR_CAPBSET_READ, capability) >= 0; capability++)
        must(prctl(PR_CAPBSET_DROP, capability) == 0, "capability bounding set");
    must(syscall(SYS_capset, &header, none) == 0, "capset");
    must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no_new_privs");
}

static const int refused[] = {
    SYS_ptrace, SYS_process_vm_readv, SYS_process_vm_writev, SYS_kcmp, SYS_perf_event_open, SYS_bpf, SYS_keyctl, SYS_add_key,
    SYS_request_key, SYS_userfaultfd, SYS_mount, SYS_umount2, SYS_pivot_root, SYS_setns, SYS_unshare, SYS_open_by_handle_at,
    SYS_init_module, SYS_finit_module, SYS_delete_module, SYS_kexec_load, SYS_kexec_file_load, SYS_quotactl, SYS_swapon, SYS_swapoff,
    SYS_reboot, SYS_acct, SYS_iopl, SYS_ioperm, SYS_lookup_dcookie, SYS_clock_settime, SYS_settimeofday, SYS_syslog, SYS_mbind,
    SYS_get_mempolicy, SYS_set_mempolicy, SYS_move_pages, SYS_migrate_pages, SYS_fanotify_init, SYS_io_uring_setup,
    SYS_io_uring_enter, SYS_io_uring_register, SYS_pidfd_getfd, SYS_chroot, SYS_move_mount, SYS_open_tree, SYS_fsopen, SYS_fsconfig,
    SYS_fsmount, SYS_fspick, SYS_mount_setattr, SYS_vhangup, SYS_sethostname, SYS_setdomainname, SYS_process_madvise,
};
enum { REFUSED = sizeof refused / sizeof *refused, NEWEST = 451 };

static void filter(void) {
    static struct sock_filter code[REFUSED * 2 + 32];
    int at = 0;
#define SAY(statement) code[at++] = (struct sock_filter)statement
    SAY(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)));
    SAY(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0));
    SAY(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS));
    SAY(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)));
    for (int i = 0; i < REFUSED; i++) {
        SAY(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)refused[i], 0, 1));
        SAY(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM));
    }
    SAY(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 0, 1));
    SAY(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS));
    SAY(BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, NEWEST, 0, 1));
    SAY(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS));
    SAY(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 3));
    SAY(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args)));
    SAY(BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, 0x7e020000 /* new namespaces */, 0, 1));
    SAY(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM));
    SAY(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    struct sock_fprog program = {(unsigned short)at, code};
    must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0, "seccomp");
    must(syscall(SYS_kcmp, getpid(), getpid(), 1, 0, 0) < 0 && errno == EPERM, "kcmp is not refused");
    must(syscall(SYS_clone3, NULL, 0) < 0 && errno == ENOSYS, "clone3 is known");
}

int main(int argc, char **argv) {
    if (argc < 3) { fprintf(stderr, "usage: %s FOLDER PROGRAM [ARGUMENT...]\n", argv[0]); return 2; }
    enter(argv[1]);
    give_up_rights();
    filter();
    execvp(argv[2], argv + 2);
    must(0, argv[2]);
}
