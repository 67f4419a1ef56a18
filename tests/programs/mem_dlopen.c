/* Shared libraries: one opened before, used after; another opened after. argument: a library of ours, with `int answer(int)`, which
   is another one on the disk by then. */
#include "probe.h"
#include <dlfcn.h>

typedef double unary(double);

typedef int question(int);

/* The answer it gave before is the one it gives after, from code and data that were first touched after. */
static void *own_library(const char *path, question **answer) {
    void *library = dlopen(path, RTLD_NOW);
    CHECK(library != NULL, "dlopen of %s: %s", path, dlerror());
    *answer = (question *)dlsym(library, "answer");
    CHECK(*answer && (*answer)(0) == 42, "answer before the checkpoint");
    return library;
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    void *library = dlopen("libm.so.6", RTLD_NOW);
    if (!library) skip("no libm.so.6 to open: %s", dlerror());
    unary *cosine = (unary *)dlsym(library, "cos");
    CHECK(cosine && cosine(0.0) == 1.0, "cos before the checkpoint");
    question *answer = NULL;
    void *own = argc > 2 ? own_library(argv[2], &answer) : NULL;
    probe_ready();
    probe_wait();
    for (int page = 0; own && page < 64; page++)
        CHECK(answer(page) == 42 + page, "answer of page %d after the resume: %d", page, answer(page));
    if (own) CHECK(dlclose(own) == 0, "dlclose of our library");
    CHECK(cosine(0.0) == 1.0, "cos after the resume");
    CHECK(dlsym(library, "tanh") != NULL, "dlsym after the resume");
    void *other = dlopen("libresolv.so.2", RTLD_NOW);
    CHECK(other != NULL, "dlopen after the resume: %s", dlerror());
    CHECK(dlclose(other) == 0 && dlclose(library) == 0, "dlclose");
    return probe_pass();
}
