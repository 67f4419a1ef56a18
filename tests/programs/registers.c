/* Registers: general, x87, SSE, AVX, AVX-512 and their control words are held in a loop that touches nothing,
   one thread for each kind, across the checkpoint. */
#include "probe.h"

__attribute__((used)) volatile int registers_stop;

/* hold_general(out): 14 registers get constants, wait, and are stored to out[0..14]. */
__asm__(
    ".text\n.globl hold_general\nhold_general:\n"
    "  push %rbx\n  push %rbp\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n  push %rdi\n"
    "  movabs $0x1111111111111101, %rax\n  movabs $0x1111111111111102, %rbx\n  movabs $0x1111111111111103, %rcx\n"
    "  movabs $0x1111111111111104, %rdx\n  movabs $0x1111111111111105, %rsi\n  movabs $0x1111111111111106, %rbp\n"
    "  movabs $0x1111111111111107, %r8\n  movabs $0x1111111111111108, %r9\n  movabs $0x1111111111111109, %r10\n"
    "  movabs $0x111111111111110a, %r11\n  movabs $0x111111111111110b, %r12\n  movabs $0x111111111111110c, %r13\n"
    "  movabs $0x111111111111110d, %r14\n  movabs $0x111111111111110e, %r15\n"
    "1: pause\n  cmpl $0, registers_stop(%rip)\n  je 1b\n"
    "  pop %rdi\n"
    "  mov %rax, 0(%rdi)\n  mov %rbx, 8(%rdi)\n  mov %rcx, 16(%rdi)\n  mov %rdx, 24(%rdi)\n  mov %rsi, 32(%rdi)\n"
    "  mov %rbp, 40(%rdi)\n  mov %r8, 48(%rdi)\n  mov %r9, 56(%rdi)\n  mov %r10, 64(%rdi)\n  mov %r11, 72(%rdi)\n"
    "  mov %r12, 80(%rdi)\n  mov %r13, 88(%rdi)\n  mov %r14, 96(%rdi)\n  mov %r15, 104(%rdi)\n"
    "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbp\n  pop %rbx\n  ret\n");
extern void hold_general(uint64_t *out);

static void *general(void *nothing) {
    uint64_t out[14];
    hold_general(out);
    for (unsigned i = 0; i < 14; i++)
        CHECK(out[i] == 0x1111111111111101u + i, "general register %u is %lx", i, out[i]);
    return nothing;
}

static void *x87(void *nothing) {
    double in[8] = {1.5, -2.25, 3e100, 4e-100, 0.1, -6, 7.75, 8}, out[8];
    uint16_t control = 0x0a7f, after;
    __asm__ volatile(
        "fninit\n fldcw %[control]\n"
        "fldl 0(%[in])\n fldl 8(%[in])\n fldl 16(%[in])\n fldl 24(%[in])\n"
        "fldl 32(%[in])\n fldl 40(%[in])\n fldl 48(%[in])\n fldl 56(%[in])\n"
        "1: pause\n cmpl $0, registers_stop(%%rip)\n je 1b\n"
        "fnstcw %[after]\n"
        "fstpl 56(%[out])\n fstpl 48(%[out])\n fstpl 40(%[out])\n fstpl 32(%[out])\n"
        "fstpl 24(%[out])\n fstpl 16(%[out])\n fstpl 8(%[out])\n fstpl 0(%[out])\n fninit\n"
        : [after] "=m"(after) : [control] "m"(control), [in] "r"(in), [out] "r"(out) : "memory", "cc");
    CHECK(after == control, "x87 control word is %x", after);
    CHECK(memcmp(in, out, sizeof in) == 0, "x87 registers differ");
    return nothing;
}

#define EACH16(do) do(0) do(1) do(2) do(3) do(4) do(5) do(6) do(7) do(8) do(9) do(10) do(11) do(12) do(13) do(14) do(15)
#define WAIT "1: pause\n cmpl $0, registers_stop(%%rip)\n je 1b\n"

static void *sse(void *nothing) {
    unsigned char in[256], out[256];
    uint32_t control = 0xff80, usual = 0x1f80, after;
    probe_fill(in, sizeof in, 5);
#define LOAD(n) "movdqu " #n "*16(%[in]), %%xmm" #n "\n"
#define STORE(n) "movdqu %%xmm" #n ", " #n "*16(%[out])\n"
    __asm__ volatile("ldmxcsr %[control]\n" EACH16(LOAD) WAIT EACH16(STORE) "stmxcsr %[after]\n ldmxcsr %[usual]\n"
        : [after] "=m"(after)
        : [control] "m"(control), [usual] "m"(usual), [in] "r"(in), [out] "r"(out)
        : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
          "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
#undef LOAD
#undef STORE
    CHECK(after == control, "MXCSR is %x", after);
    CHECK(memcmp(in, out, sizeof in) == 0, "SSE registers differ");
    return nothing;
}

static void *avx(void *nothing) {
    unsigned char in[512], out[512];
    probe_fill(in, sizeof in, 6);
#define LOAD(n) "vmovdqu " #n "*32(%[in]), %%ymm" #n "\n"
#define STORE(n) "vmovdqu %%ymm" #n ", " #n "*32(%[out])\n"
    __asm__ volatile(EACH16(LOAD) WAIT EACH16(STORE) "vzeroupper\n"
        : : [in] "r"(in), [out] "r"(out)
        : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
          "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
#undef LOAD
#undef STORE
    CHECK(memcmp(in, out, sizeof in) == 0, "AVX registers differ");
    return nothing;
}

static void *avx512(void *nothing) {
    unsigned char in[2048], out[2048];
    uint64_t masks_in[8], masks_out[8];
    probe_fill(in, sizeof in, 7);
    probe_fill(masks_in, sizeof masks_in, 8);
    /* The upper sixteen registers are not named as clobbered: a program built for plain x86-64 never uses them. */
#define HIGH(n) "vmovdqu64 " #n "*64(%[in]), %%zmm" #n "\n"
#define BACK(n) "vmovdqu64 %%zmm" #n ", " #n "*64(%[out])\n"
#define UPPER(do) do(16) do(17) do(18) do(19) do(20) do(21) do(22) do(23) do(24) do(25) do(26) do(27) do(28) do(29) do(30) do(31)
#define MASK(n) "kmovw " #n "*8(%[masks]), %%k" #n "\n"
#define MASKBACK(n) "kmovw %%k" #n ", " #n "*8(%[masks_out])\n"
#define MASKS(do) do(1) do(2) do(3) do(4) do(5) do(6) do(7)
    memset(masks_out, 0, sizeof masks_out);
    __asm__ volatile(EACH16(HIGH) UPPER(HIGH) MASKS(MASK) WAIT EACH16(BACK) UPPER(BACK) MASKS(MASKBACK) "vzeroupper\n"
        : : [in] "r"(in), [out] "r"(out), [masks] "r"(masks_in), [masks_out] "r"(masks_out)
        : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
          "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    CHECK(memcmp(in, out, sizeof in) == 0, "AVX-512 registers differ");
    for (int i = 1; i < 8; i++)
        CHECK((uint16_t)masks_out[i] == (uint16_t)masks_in[i], "AVX-512 mask register k%d differs", i);
    return nothing;
}

int main(int argc, char **argv) {
    probe_start(argc, argv);
    const char *kind = argc > 2 ? argv[2] : "general";
    void *(*body)(void *) = NULL;
    if (!strcmp(kind, "general")) body = general;
    if (!strcmp(kind, "x87")) body = x87;
    if (!strcmp(kind, "sse")) body = sse;
    if (!strcmp(kind, "avx")) body = __builtin_cpu_supports("avx") ? avx : NULL;
    if (!strcmp(kind, "avx512")) body = __builtin_cpu_supports("avx512f") ? avx512 : NULL;
    if (!body) skip("this processor has no %s", kind);
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) PTRY(pthread_create(&threads[i], NULL, body, NULL));
    usleep(20000);
    probe_ready();
    probe_wait();
    registers_stop = 1;
    for (int i = 0; i < 2; i++) PTRY(pthread_join(threads[i], NULL));
    return probe_pass();
}
