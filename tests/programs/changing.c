/* Memory that changes all the time while it is saved, each page in a way that tells whether it is from another time than the rest.
   argument: pages (random ones are rewritten whole), moves (mappings are moved, given back, made anew and emptied), across (what was made anew within another mapping is moved
   with it), forks (children that
   have the memory too are born and end), threads (several rewrite each its own pages), empties and huge (whole tables of pages, of huge
   ones too, are given back and filled again), calls (the kernel writes the pages), direct (a disk does), opens (files
   come and go meanwhile). */
#include "probe.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define WORDS 512
#define PAGES 8192

typedef struct { uint64_t word[WORDS]; } page;

/* What the writer is about to write: it may be half done. */
static struct { volatile uint64_t at, round; } journal[8];
static page *pages;
static uint64_t rounds[PAGES];

static uint64_t chance(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}

static uint64_t content(uint64_t at, uint64_t round, int word) { return round ? at * 0x9e3779b97f4a7c15u ^ round << 9 ^ (uint64_t)word : 0; }

static void rewrite(int writer, uint64_t at) {
    uint64_t round = rounds[at] + 1;
    journal[writer].at = at;
    journal[writer].round = round;
    for (int word = 0; word < WORDS; word++) ((volatile page *)pages)[at].word[word] = content(at, round, word);
    rounds[at] = round;
}

static void check(uint64_t at, const page *found) {
    for (int word = 0; word < WORDS; word++) CHECK(found->word[word] == content(at, rounds[at], word), "page %lu, word %d: %#lx, not that of round %lu", at, word, found->word[word], rounds[at]);
}

static void check_all(void) {
    for (uint64_t at = 0; at < PAGES; at++) check(at, &pages[at]);
}

static void *writer(void *argument) {
    uint64_t number = (uint64_t)(uintptr_t)argument, state = 88172645463325252u + number;
    while (!probe_resumed()) {
        for (int i = 0; i < 64; i++) rewrite((int)number, chance(&state) % (PAGES / 4) * 4 + number);
        usleep(200);
    }
    return argument;
}

static void empty(uint64_t at, uint64_t count) {
    TRY(madvise(&pages[at], count * sizeof(page), MADV_DONTNEED));
    memset(&rounds[at], 0, count * sizeof *rounds);
}

/* The last quarter goes away and comes back elsewhere; a part is emptied; a part (of the last quarter as well, if it is `across`) is
   unmapped and mapped anew. */
static void moves(int across) {
    uint64_t state = 88172645463325252u, quarter = PAGES / 4;
    size_t size = quarter * sizeof(page);
    page *aside = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(aside != MAP_FAILED, "mmap: %s", strerror(errno));
    for (int turn = 0; !probe_resumed(); turn++) {
        for (int i = 0; i < 40; i++) rewrite(0, chance(&state) % PAGES);
        page *last = &pages[3 * quarter];
        CHECK(mremap(last, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, aside) == aside, "mremap: %s", strerror(errno));
        for (uint64_t i = 0; i < 5; i++) {
            uint64_t at = 3 * quarter + chance(&state) % quarter;
            check(at, &aside[at - 3 * quarter]);
        }
        CHECK(mremap(aside, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, last) == last, "mremap: %s", strerror(errno));
        aside = mmap(aside, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
        empty(chance(&state) % (PAGES - 16), 16);
        uint64_t at = chance(&state) % ((across ? PAGES : 3 * quarter) - 8);
        CHECK(mmap(&pages[at], 8 * sizeof(page), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == &pages[at], "mmap: %s", strerror(errno));
        memset(&rounds[at], 0, 8 * sizeof *rounds);
        rewrite(0, at + 3);
        usleep(across ? 20 : 500);
    }
}

/* In the second half nothing else is written, so that what is given back stays away. */
static void empties(void) {
    uint64_t state = 88172645463325252u, table = 512;
    while (!probe_resumed()) {
        uint64_t at = PAGES / 2 + chance(&state) % (PAGES / 2 / table) * table;
        empty(at, table);
        for (int i = 0; i < 20; i++) rewrite(0, chance(&state) % (PAGES / 2));
        usleep(3000);
        if (chance(&state) % 2) for (uint64_t i = 0; i < table; i++) rewrite(0, at + i);
    }
}

static int pattern(const char *name, int flags) {
    int fd = TRY(open(name, O_RDWR | O_CREAT | O_TRUNC, 0600));
    static page one __attribute__((aligned(4096)));
    for (uint64_t at = 0; at < 64; at++) {
        for (int word = 0; word < WORDS; word++) one.word[word] = content(at, 1000, word);
        TRY(pwrite(fd, &one, sizeof one, (off_t)(at * sizeof one)));
    }
    fsync(fd);
    close(fd);
    fd = open(name, O_RDONLY | flags);
    if (fd == -1 && errno == EINVAL) skip("this file system has no O_DIRECT");
    return TRY(fd);
}

/* Pages 0 to 63 of the quarter are read from a file, where they are in the state of round 1000; then cleared by hand, and so on. */
static void reads(int flags, int opens) {
    uint64_t state = 88172645463325252u;
    int fd = pattern("pattern", flags);
    while (!probe_resumed()) {
        uint64_t at = chance(&state) % 64;
        CHECK(pread(fd, &pages[at], sizeof(page), (off_t)(at * sizeof(page))) == sizeof(page), "pread: %s", strerror(errno));
        rounds[at] = 1000;
        rewrite(0, 64 + chance(&state) % 64);
        empty(chance(&state) % 64, 1);
        for (int more[8], i = 0; opens && i < 16; i++) {
            if (i < 8) more[i] = TRY(open("pattern", O_RDONLY));
            else TRY(close(more[i - 8]));
        }
        if (!opens) usleep(100);
    }
    close(fd);
}

static void forks(void) {
    uint64_t state = 88172645463325252u;
    while (!probe_resumed()) {
        pid_t child = TRY(fork());
        if (child == 0) {
            for (int i = 0; i < 20; i++) rewrite(1, chance(&state) % PAGES);
            _exit(0);
        }
        for (int i = 0; i < 40; i++) rewrite(0, chance(&state) % PAGES);
        int status;
        pid_t ended;
        do ended = waitpid(child, &status, 0); while (ended == -1 && errno == EINTR);
        CHECK(ended == child && status == 0, "the child ended as %#x", status);
    }
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *kind = argc > 2 ? argv[2] : "pages";
    size_t size = PAGES * sizeof(page), table = 2 << 20;
    char *room = mmap(NULL, size + table, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(room != MAP_FAILED, "mmap: %s", strerror(errno));
    pages = (page *)(((uintptr_t)room + table - 1) & ~(table - 1));
    if (!strcmp(kind, "huge")) TRY(madvise(pages, size, MADV_HUGEPAGE));
    for (uint64_t at = 0; at < PAGES; at++) rewrite(0, at);
    probe_ready();
    if (!strcmp(kind, "moves")) moves(0);
    else if (!strcmp(kind, "across")) moves(1);
    else if (!strcmp(kind, "forks")) forks();
    else if (!strcmp(kind, "empties") || !strcmp(kind, "huge")) empties();
    else if (!strcmp(kind, "calls")) reads(0, 0);
    else if (!strcmp(kind, "opens")) reads(0, 1);
    else if (!strcmp(kind, "direct")) reads(O_DIRECT, 0);
    else {
        pthread_t threads[4];
        uintptr_t count = strcmp(kind, "threads") ? 1 : 4;
        for (uintptr_t i = 0; i < count; i++) PTRY(pthread_create(&threads[i], NULL, writer, (void *)i));
        for (uintptr_t i = 0; i < count; i++) PTRY(pthread_join(threads[i], NULL));
    }
    check_all();
    return probe_pass();
}
