/* What a tree of processes is, as the kernel tells it: ids, ends, what is shared with whom, descriptors, mappings. One line each.
   argument: the id of its root. Ids of what lies outside (the session and group of the root, unless it leads them) are left out. */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MOST 4096

struct process { int pid, ppid, pgid, sid, threads, ended; char state; };
static struct process all[MOST], tree[MOST];
static int count, members;

struct open { int pid, fd; char link[512]; };
static struct open files[MOST];
static int opened;

static char *text(const char *format, int pid, const char *name) {
    static char content[1 << 20];
    char path[128];
    snprintf(path, sizeof path, format, pid, name);
    FILE *file = fopen(path, "r");
    size_t got = file ? fread(content, 1, sizeof content - 1, file) : 0;
    if (file) fclose(file);
    content[got] = 0;
    return content;
}

static int numbers(const char *folder, int *into) {
    DIR *listing = opendir(folder);
    int got = 0;
    for (struct dirent *entry; listing && (entry = readdir(listing));)
        if (isdigit((unsigned char)entry->d_name[0]) && got < MOST) into[got++] = atoi(entry->d_name);
    if (listing) closedir(listing);
    return got;
}

static void look(int pid) {
    struct process one = {.pid = pid};
    char *stat = strrchr(text("/proc/%d/stat", pid, ""), ')');
    if (!stat || sscanf(stat + 2, "%c %d %d %d", &one.state, &one.ppid, &one.pgid, &one.sid) != 4) return;
    char *word = strtok(stat + 2, " ");
    for (int field = 3; word; word = strtok(NULL, " "), field++) {
        if (field == 20) one.threads = atoi(word);
        if (field == 52) one.ended = atoi(word);
    }
    all[count++] = one;
}

static void add(int at) {
    tree[members++] = all[at];
    for (int i = 0; i < count; i++) if (all[i].ppid == all[at].pid) add(i);
}

/* Whether somebody outside of the tree is in it, or the root, which gets another one. */
static int is_outside(int group, int session) {
    for (int i = 0; i < count; i++) {
        int inside = 0;
        for (int j = 0; j < members; j++) inside |= tree[j].pid == all[i].pid;
        if (!inside && (group ? all[i].pgid == group : all[i].sid == session)) return 1;
    }
    return 0;
}

static int by_id(const void *a, const void *b) { return ((const struct process *)a)->pid - ((const struct process *)b)->pid; }
static int by_number(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

/* The first of the tree with which it has this in common. */
static int first_with(int kind, int at) {
    for (int i = 0; i < at; i++) {
        if (tree[i].state == 'Z') continue;
        if (syscall(SYS_kcmp, tree[i].pid, tree[at].pid, kind, 0, 0) == 0) return tree[i].pid;
    }
    return tree[at].pid;
}

static void line_of(int pid, const char *name) {
    char *status = text("/proc/%d/status", pid, "");
    for (char *line = strtok(status, "\n"); line; line = strtok(NULL, "\n"))
        if (!strncmp(line, name, strlen(name))) printf(" %s", line);
}

static void descriptors(struct process *one) {
    char folder[64], path[96];
    int fds[MOST];
    snprintf(folder, sizeof folder, "/proc/%d/fd", one->pid);
    int got = numbers(folder, fds);
    qsort(fds, (size_t)got, sizeof *fds, by_number);
    for (int i = 0; i < got; i++) {
        struct open *file = &files[opened++];
        *file = (struct open){.pid = one->pid, .fd = fds[i]};
        snprintf(path, sizeof path, "%s/%d", folder, fds[i]);
        if (readlink(path, file->link, sizeof file->link - 1) < 0) strcpy(file->link, "?");
        struct open *same = files, *pipe = files;
        while (same != file && syscall(SYS_kcmp, same->pid, file->pid, KCMP_FILE, same->fd, file->fd) != 0) same++;
        while (pipe != file && strcmp(pipe->link, file->link)) pipe++;
        snprintf(path, sizeof path, "%d", fds[i]);
        char *info = text("/proc/%d/fdinfo/%s", one->pid, path);
        long position = 0;
        unsigned flags = 0;
        sscanf(info, "pos: %ld flags: %o", &position, &flags);
        /* What the standard streams lead to is that of the resume. */
        if (fds[i] <= 2) printf("  fd %d cloexec %d, first %d/%d\n", fds[i], !!(flags & 02000000), same->pid, same->fd);
        else if (strstr(file->link, ":["))
            printf("  fd %d flags %o, first %d/%d, object %d/%d\n", fds[i], flags, same->pid, same->fd, pipe->pid, pipe->fd);
        else printf("  fd %d flags %o position %ld, first %d/%d, %s\n", fds[i], flags, position, same->pid, same->fd, file->link);
    }
}

/* Anonymous neighbours count as one: the kernel may have them as one afterwards. */
static void mappings(struct process *one) {
    unsigned long start, end, last_start = 0, last_end = 0;
    char rights[8], last_rights[8] = "";
    for (char *line = strtok(text("/proc/%d/maps", one->pid, ""), "\n"); line; line = strtok(NULL, "\n")) {
        char name[512] = "";
        if (sscanf(line, "%lx-%lx %7s %*s %*s %*s %511s", &start, &end, rights, name) < 3) continue;
        if (!strcmp(name, "[vsyscall]")) continue;
        if (!name[0] && start == last_end && !strcmp(rights, last_rights)) {
            last_end = end;
            continue;
        }
        if (last_end) printf("  %lx-%lx %s\n", last_start, last_end, last_rights);
        last_end = 0;
        if (name[0]) printf("  %lx-%lx %s %s\n", start, end, rights, name);
        else last_start = start, last_end = end, strcpy(last_rights, rights);
    }
    if (last_end) printf("  %lx-%lx %s\n", last_start, last_end, last_rights);
}

int main(int argc, char **argv) {
    int pids[MOST], root = argc > 1 ? atoi(argv[1]) : 0;
    int got = numbers("/proc", pids);
    for (int i = 0; i < got; i++) look(pids[i]);
    for (int i = 0; i < count; i++) if (all[i].pid == root) add(i);
    if (members == 0) { fprintf(stderr, "no process %d\n", root); return 1; }
    struct process top = tree[0];
    qsort(tree, (size_t)members, sizeof *tree, by_id);
    for (int i = 0; i < members; i++) {
        struct process *one = &tree[i];
        int outside_group = one->pgid == top.pgid || is_outside(one->pgid, 0);
        int outside_session = one->sid == top.sid || is_outside(0, one->sid);
        printf("process %d parent %d group %d session %d threads %d", one->pid, one->pid == root ? 0 : one->ppid,
               outside_group ? root : one->pgid, outside_session ? root : one->sid, one->threads);
        if (one->state == 'Z') {
            printf(" ended as %d\n", one->ended);
            continue;
        }
        printf(" memory %d files %d folders %d handlers %d\n ", first_with(KCMP_VM, i), first_with(KCMP_FILES, i),
               first_with(KCMP_FS, i), first_with(KCMP_SIGHAND, i));
        line_of(one->pid, "Name:");
        line_of(one->pid, "Umask:");
        line_of(one->pid, "ShdPnd:");
        line_of(one->pid, "SigBlk:");
        line_of(one->pid, "SigIgn:");
        line_of(one->pid, "SigCgt:");
        char folder[512] = "", path[64];
        snprintf(path, sizeof path, "/proc/%d/cwd", one->pid);
        if (readlink(path, folder, sizeof folder - 1) < 0) strcpy(folder, "?");
        printf(" in %s\n", folder);
        if (first_with(KCMP_FILES, i) == one->pid) descriptors(one);
        if (first_with(KCMP_VM, i) == one->pid) mappings(one);
    }
    return 0;
}
