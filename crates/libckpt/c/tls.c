/*
 * Of libckpt.so alone: where its thread-local words are. The loader's function of this name may take memory by malloc, when the thread has
 * not been here since another library was loaded; in the copy that writes an image that must never be. This library is one that is
 * loaded at the start (it says so: DF_STATIC_TLS), so that its words are at the same place from each thread's pointer.
 */
__asm__(".pushsection .tbss.rewake_ckpt_base, \"awT\", @nobits\n"
        ".local rewake_ckpt_base\n"
        "rewake_ckpt_base: .zero 8\n"
        ".popsection\n"
        ".pushsection .text\n"
        ".globl __tls_get_addr\n"
        ".hidden __tls_get_addr\n"
        ".type __tls_get_addr, @function\n"
        "__tls_get_addr:\n"
        ".cfi_startproc\n"
        "movq %fs:0, %rax\n"
        "addq rewake_ckpt_base@gottpoff(%rip), %rax\n"
        "leaq rewake_ckpt_base@dtpoff, %rcx\n"
        "subq %rcx, %rax\n"
        /* A tls_index: which library, and how far into its words. */
        "addq 8(%rdi), %rax\n"
        "ret\n"
        ".cfi_endproc\n"
        ".size __tls_get_addr, . - __tls_get_addr\n"
        ".popsection\n");
