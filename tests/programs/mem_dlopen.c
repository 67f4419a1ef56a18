/* Shared libraries: one opened before, used after; another opened after. */
#include "probe.h"
#include <dlfcn.h>

typedef double unary(double);

int main(int argc, char **argv) {
    probe_start(argc, argv);
    void *library = dlopen("libm.so.6", RTLD_NOW);
    if (!library) skip("no libm.so.6 to open: %s", dlerror());
    unary *cosine = (unary *)dlsym(library, "cos");
    CHECK(cosine && cosine(0.0) == 1.0, "cos before the checkpoint");
    probe_ready();
    probe_wait();
    CHECK(cosine(0.0) == 1.0, "cos after the resume");
    CHECK(dlsym(library, "tanh") != NULL, "dlsym after the resume");
    void *other = dlopen("libresolv.so.2", RTLD_NOW);
    CHECK(other != NULL, "dlopen after the resume: %s", dlerror());
    CHECK(dlclose(other) == 0 && dlclose(library) == 0, "dlclose");
    return probe_pass();
}
