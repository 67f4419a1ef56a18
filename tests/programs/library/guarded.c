/*
 * A malloc that gives each piece pages of its own, with a page before them that nobody may touch: what is before a piece is nobody's
 * business. Preloaded after the library.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PAGE = 4096 };

void *malloc(size_t size) {
    size_t pages = (size + PAGE) / PAGE * PAGE;
    char *guard = mmap(NULL, PAGE + pages, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (guard == MAP_FAILED || mprotect(guard + PAGE, pages, PROT_READ | PROT_WRITE)) return NULL;
    return guard + PAGE;
}

/* Nothing is used again: whoever looks at a piece that was given back finds it as it was. */
void free(void *piece) { (void)piece; }

void *calloc(size_t count, size_t each) {
    size_t size;
    return __builtin_mul_overflow(count, each, &size) ? NULL : malloc(size);
}

void *realloc(void *piece, size_t size) {
    void *new = malloc(size);
    if (!piece || !new) return new;
    /* As far as it reaches: the page behind it may not be touched, or there is none. */
    for (size_t at = 0; at < size; at += PAGE) {
        struct iovec to = {(char *)new + at, PAGE}, from = {(char *)piece + at, PAGE};
        if (process_vm_readv(getpid(), &to, 1, &from, 1, 0) != PAGE) break;
    }
    return new;
}

void *aligned_alloc(size_t alignment, size_t size) { return alignment > PAGE ? NULL : malloc(size); }

void *memalign(size_t alignment, size_t size) { return aligned_alloc(alignment, size); }

int posix_memalign(void **piece, size_t alignment, size_t size) {
    *piece = aligned_alloc(alignment, size);
    return *piece ? 0 : ENOMEM;
}
