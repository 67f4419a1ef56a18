/* Code made at run time: a writable and executable page, an execute-only page, changed again after the resume. */
#include "probe.h"

typedef int function(void);

static void emit(unsigned char *code, int value) {
    code[0] = 0xb8; /* mov eax, value; ret */
    memcpy(code + 1, &value, 4);
    code[5] = 0xc3;
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    unsigned char *open = probe_map(PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE);
    unsigned char *closed = probe_map(PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    emit(open, 1234);
    emit(closed, 5678);
    TRY(mprotect(closed, PAGE, PROT_EXEC));
    CHECK(((function *)open)() == 1234 && ((function *)closed)() == 5678, "code before the checkpoint");
    probe_ready();
    probe_wait();
    CHECK(((function *)open)() == 1234, "writable code");
    CHECK(((function *)closed)() == 5678, "execute-only code");
    CHECK(probe_faults((char *)closed, 1), "execute-only code can be written");
    emit(open, 4321);
    CHECK(((function *)open)() == 4321, "code written after the resume");
    return probe_pass();
}
