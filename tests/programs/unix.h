/* Unix sockets: what several programs do with them. */
#ifndef UNIX_H
#define UNIX_H
#include "tree.h"
#include <linux/sockios.h>
#include <poll.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#define TEXT offsetof(struct sockaddr_un, sun_path)

/* An address: a path, or @ and an abstract name. */
static inline socklen_t unix_address(struct sockaddr_un *address, const char *text) {
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    size_t length = strlen(text);
    CHECK(length <= sizeof address->sun_path, "too long a name");
    memcpy(address->sun_path, text, length);
    if (text[0] == '@') {
        address->sun_path[0] = 0;
        return (socklen_t)(TEXT + length);
    }
    return (socklen_t)(TEXT + length + (length < sizeof address->sun_path));
}

static inline void unix_bind(int socket, const char *text) {
    struct sockaddr_un address;
    socklen_t length = unix_address(&address, text);
    CHECK(bind(socket, (struct sockaddr *)&address, length) == 0, "bind %s: %s", text, strerror(errno));
}

static inline int unix_try_connect(int socket, const char *text) {
    struct sockaddr_un address;
    socklen_t length = unix_address(&address, text);
    return connect(socket, (struct sockaddr *)&address, length);
}

static inline void unix_connect(int socket, const char *text) {
    CHECK(unix_try_connect(socket, text) == 0, "connect %s: %s", text, strerror(errno));
}

static inline void unix_same_name(const struct sockaddr_un *got, socklen_t length, const char *text, const char *what) {
    struct sockaddr_un wanted;
    if (!text) {
        CHECK(length <= TEXT, "%s: there is a name of %u bytes", what, (unsigned)length);
        return;
    }
    socklen_t expected = unix_address(&wanted, text);
    CHECK(length == expected && !memcmp(got->sun_path, wanted.sun_path, strlen(text)), "%s: not the name %s but %u bytes: %.100s", what, text, (unsigned)length, got->sun_path[0] ? got->sun_path : got->sun_path + 1);
}

/* The socket's own name, and that of its peer; null for none, "-" for no peer. */
static inline void unix_names(int socket, const char *own, const char *peer, const char *what) {
    struct sockaddr_un address;
    socklen_t length = sizeof address;
    memset(&address, 0, sizeof address);
    TRY(getsockname(socket, (struct sockaddr *)&address, &length));
    unix_same_name(&address, length, own, what);
    length = sizeof address;
    memset(&address, 0, sizeof address);
    int got = getpeername(socket, (struct sockaddr *)&address, &length);
    if (peer && !strcmp(peer, "-")) {
        CHECK(got == -1 && errno == ENOTCONN, "%s: it has a peer", what);
        return;
    }
    CHECK(got == 0, "%s: getpeername: %s", what, strerror(errno));
    unix_same_name(&address, length, peer, what);
}

static inline int unix_option(int socket, int option) {
    int value = -1;
    socklen_t length = sizeof value;
    TRY(getsockopt(socket, SOL_SOCKET, option, &value, &length));
    return value;
}

static inline void unix_set(int socket, int option, int value) {
    TRY(setsockopt(socket, SOL_SOCKET, option, &value, sizeof value));
}

/* Who is told to be at the other side. */
static inline struct ucred unix_peer(int socket) {
    struct ucred peer;
    socklen_t length = sizeof peer;
    TRY(getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length));
    return peer;
}

static inline void unix_peer_is(int socket, pid_t pid, const char *what) {
    struct ucred peer = unix_peer(socket);
    CHECK(peer.pid == pid && peer.uid == geteuid() && peer.gid == getegid(), "%s: the peer is %d (%u, %u), not %d", what, peer.pid, peer.uid, peer.gid, pid);
}

static inline void unix_got(int socket, const char *text, const char *what) {
    char buffer[4096];
    ssize_t length = recv(socket, buffer, sizeof buffer, MSG_DONTWAIT);
    CHECK(length == (ssize_t)strlen(text) && !memcmp(buffer, text, strlen(text)), "%s: not \"%s\" but %zd bytes (%s)", what, text, length, length < 0 ? strerror(errno) : "other ones");
}

static inline void unix_empty(int socket, const char *what) {
    char byte;
    CHECK(recv(socket, &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "%s: it is not empty: %s", what, strerror(errno));
}

static inline void unix_put(int socket, const char *text) {
    CHECK(send(socket, text, strlen(text), MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)strlen(text), "send \"%s\": %s", text, strerror(errno));
}

static inline void unix_ended(int socket, const char *what) {
    char byte;
    CHECK(recv(socket, &byte, 1, MSG_DONTWAIT) == 0, "%s: it has not ended", what);
}

/* Sends text with descriptors, and credentials if asked for. */
static inline void unix_send_files(int socket, const char *text, const int *files, int count, const struct ucred *who) {
    union { char bytes[1024]; struct cmsghdr align; } control;
    memset(&control, 0, sizeof control);
    struct iovec part = {(void *)text, strlen(text)};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    size_t used = 0;
    if (who) {
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_CREDENTIALS;
        header->cmsg_len = CMSG_LEN(sizeof *who);
        memcpy(CMSG_DATA(header), who, sizeof *who);
        used += CMSG_SPACE(sizeof *who);
        header = CMSG_NXTHDR(&message, header);
    }
    if (count) {
        size_t bytes = (size_t)count * sizeof(int);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(bytes);
        memcpy(CMSG_DATA(header), files, bytes);
        used += CMSG_SPACE(bytes);
    }
    message.msg_controllen = used;
    if (!used) message.msg_control = NULL;
    CHECK(sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)strlen(text), "sendmsg: %s", strerror(errno));
}

/* Receives up to so many bytes; how many descriptors came along. Credentials go to `who`, whose pid is -1 if there were none. */
static inline int unix_get_files(int socket, size_t most, const char *text, int *files, struct ucred *who, const char *what) {
    union { char bytes[1024]; struct cmsghdr align; } control;
    char buffer[4096];
    struct iovec part = {buffer, most};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    ssize_t length = recvmsg(socket, &message, MSG_DONTWAIT);
    CHECK(length == (ssize_t)strlen(text) && !memcmp(buffer, text, strlen(text)), "%s: not \"%s\" but %zd bytes (%s)", what, text, length, length < 0 ? strerror(errno) : "other ones");
    CHECK(!(message.msg_flags & MSG_CTRUNC), "%s: there was no room for all that came along", what);
    int count = 0;
    if (who) who->pid = -1;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level != SOL_SOCKET) continue;
        if (header->cmsg_type == SCM_RIGHTS) {
            count = (int)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            memcpy(files, CMSG_DATA(header), (size_t)count * sizeof(int));
        }
        if (header->cmsg_type == SCM_CREDENTIALS && who) memcpy(who, CMSG_DATA(header), sizeof *who);
    }
    return count;
}

/* A process may have inherited a file of that name from an earlier run. */
static inline void unix_fresh(const char *path) { unlink(path); }
#endif
