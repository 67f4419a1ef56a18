/* Members of other users in one tree, which root made: what sockets tell of them, messages of theirs that wait, their pidfds and files. */
#include "unix.h"
#include <grp.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>

static const uid_t USERS[2] = {1000, 65534};

static void become(int which) {
    gid_t groups[] = {2000 + (gid_t)which};
    TRY(setgroups(1, groups));
    TRY(setresgid(USERS[which], USERS[which], USERS[which]));
    TRY(setresuid(USERS[which], USERS[which], USERS[which]));
    TRY(prctl(PR_SET_DUMPABLE, 1));
}

static void peer_is(int socket, pid_t pid, uid_t uid, const char *what) {
    struct ucred peer = {0};
    gid_t groups[8] = {0};
    socklen_t length = sizeof peer, room = sizeof groups;
    TRY(getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length));
    CHECK(peer.pid == pid && peer.uid == uid && peer.gid == uid, "%s: of %d, user %u, group %u; expected %d, %u", what, peer.pid, peer.uid, peer.gid, pid, uid);
    TRY(getsockopt(socket, SOL_SOCKET, 59, groups, &room));
    gid_t wanted = uid == USERS[0] ? 2000 : 2001;
    CHECK(uid == 0 || (room == sizeof *groups && groups[0] == wanted), "%s: %u bytes of groups, the first %u", what, room, groups[0]);
}

/* Receives a message with its sender. */
static void message_of(int socket, pid_t pid, uid_t uid, const char *text) {
    char data[32] = "";
    union {
        char bytes[CMSG_SPACE(sizeof(struct ucred))];
        struct cmsghdr aligned;
    } control;
    struct iovec part = {.iov_base = data, .iov_len = sizeof data - 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    TRY(recvmsg(socket, &message, 0));
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    CHECK(head && head->cmsg_type == SCM_CREDENTIALS, "nobody sent it");
    struct ucred *sender = (struct ucred *)CMSG_DATA(head);
    CHECK(!strcmp(data, text) && sender->pid == pid && sender->uid == uid && sender->gid == uid, "%s of %d, user %u, group %u; expected %s of %d, %u", data, sender->pid, sender->uid, sender->gid, text, pid, uid);
}

static void ids_are(pid_t pid, uid_t uid) {
    uid_t uids[3];
    gid_t gids[3], group;
    TRY(getresuid(&uids[0], &uids[1], &uids[2]));
    TRY(getresgid(&gids[0], &gids[1], &gids[2]));
    CHECK(getpid() == pid && uids[0] == uid && uids[1] == uid && uids[2] == uid && gids[0] == uid && gids[1] == uid && gids[2] == uid, "ids of %d: user %u, group %u", pid, uids[1], gids[1]);
    CHECK(getgroups(1, &group) == 1 && group == (uid == USERS[0] ? 2000u : 2001u), "groups of %d", pid);
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    if (geteuid() != 0) skip("it takes root to become others");
    int between[2], up[2], go = TRY(open(".", O_PATH | O_DIRECTORY));
    TRY(socketpair(AF_UNIX, SOCK_DGRAM, 0, up));
    TRY(setsockopt(up[0], SOL_SOCKET, SO_PASSCRED, &(int){1}, sizeof(int)));
    TRY(chmod(".", 0755));
    tree_begin();
    int listener = TRY(socket(AF_UNIX, SOCK_STREAM, 0));
    unix_bind(listener, "@rewake-test-users");
    TRY(listen(listener, 5));
    pid_t root = getpid(), all[2];
    for (int i = 0; i < 2; i++) {
        all[i] = tree_fork();
        if (all[i]) continue;
        pid_t own = getpid();
        TRY(fchdir(go));
        become(i);
        int connected = TRY(socket(AF_UNIX, SOCK_STREAM, 0));
        struct sockaddr_un address;
        socklen_t length = unix_address(&address, "@rewake-test-users");
        TRY(connect(connected, (struct sockaddr *)&address, length));
        CHECK(write(connected, "hello", 5) == 5, "write");
        /* Of its own, which nobody else made. */
        TRY(socketpair(AF_UNIX, SOCK_STREAM, 0, between));
        CHECK(write(up[1], i ? "second" : "first", i ? 6 : 5) > 0, "message: %s", strerror(errno));
        int parent = TRY((int)syscall(SYS_pidfd_open, root, 0));
        tree_set_up();
        while (faccessat(go, "go", F_OK, 0) != 0) usleep(2000);
        ids_are(own, USERS[i]);
        peer_is(connected, root, 0, "the listener");
        peer_is(between[0], own, USERS[i], "a pair of one's own");
        CHECK(syscall(SYS_pidfd_send_signal, parent, 0, NULL, 0) == -1 && errno == EPERM, "root may be sent signals");
        CHECK(kill(root, 0) == -1 && errno == EPERM, "root may be sent signals");
        char answer[4];
        CHECK(read(connected, answer, 4) == 4 && !memcmp(answer, "back", 4), "answer");
        _exit(i + 1);
    }
    int accepted[2], pidfds[2], who[2];
    char byte;
    for (int i = 0; i < 2; i++) CHECK(read(tree_pipe[0], &byte, 1) == 1, "waiting for the children");
    TRY(close(tree_pipe[0]));
    TRY(close(tree_pipe[1]));
    for (int i = 0; i < 2; i++) {
        accepted[i] = TRY(accept(listener, NULL, NULL));
        struct ucred peer;
        socklen_t length = sizeof peer;
        TRY(getsockopt(accepted[i], SOL_SOCKET, SO_PEERCRED, &peer, &length));
        who[i] = peer.pid == all[0] ? 0 : 1;
        peer_is(accepted[i], all[who[i]], USERS[who[i]], "before");
        pidfds[i] = TRY((int)syscall(SYS_pidfd_open, all[i], 0));
    }
    probe_ready();
    probe_wait();
    for (int i = 0; i < 2; i++) {
        peer_is(accepted[i], all[who[i]], USERS[who[i]], "a connection");
        char text[6] = "";
        CHECK(read(accepted[i], text, 5) == 5 && !strcmp(text, "hello"), "what waited: %s", text);
        TRY((int)syscall(SYS_pidfd_send_signal, pidfds[i], 0, NULL, 0));
    }
    /* In which order they sent them nobody knows. */
    char data[8] = "";
    CHECK(recv(up[0], data, sizeof data, MSG_PEEK) > 0, "no message");
    int first = data[0] == 'f' ? 0 : 1;
    message_of(up[0], all[first], USERS[first], first ? "second" : "first");
    message_of(up[0], all[!first], USERS[!first], first ? "first" : "second");
    for (int i = 0; i < 2; i++) CHECK(write(accepted[i], "back", 4) == 4, "write: %s", strerror(errno));
    for (int i = 0; i < 2; i++) {
        struct pollfd ended = {.fd = pidfds[i], .events = POLLIN};
        CHECK(poll(&ended, 1, 5000) == 1, "a pidfd does not tell of the end of %d", all[i]);
        tree_ends(all[i], (i + 1) << 8);
    }
    return probe_pass();
}
