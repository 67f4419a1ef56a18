# Walks entries of 80 bytes: number 0, arguments 8..55, result 56, flags 64, expected 72.
# r12 entry, r13 context {failed entry, entry to go on with}, rbx flags, r14 scratch. No stack, no relocations.
    .pushsection .rodata.rewake_executor, "a"
    .globl rewake_executor_start
    .globl rewake_executor_end
    .balign 16
rewake_executor_start:
.Lentry:
    mov 64(%r12), %rbx
    mov 8(%r12), %rdi
    bt $0, %rbx
    jnc 1f
    mov (%rdi), %rdi
1:  mov 16(%r12), %rsi
    bt $1, %rbx
    jnc 1f
    mov (%rsi), %rsi
1:  mov 24(%r12), %rdx
    bt $2, %rbx
    jnc 1f
    mov (%rdx), %rdx
1:  mov 32(%r12), %r10
    bt $3, %rbx
    jnc 1f
    mov (%r10), %r10
1:  mov 40(%r12), %r8
    bt $4, %rbx
    jnc 1f
    mov (%r8), %r8
1:  mov 48(%r12), %r9
    bt $5, %rbx
    jnc 1f
    mov (%r9), %r9
1:  bt $13, %rbx
    jc .Lbarrier
    bt $14, %rbx
    jc .Lleave
.Lcall:
    mov (%r12), %rax
    syscall
    cmp $-4, %rax               # EINTR
    jne 1f
    bt $11, %rbx
    jc .Lcall
1:  bt $12, %rbx
    jnc 1f
    test %rax, %rax             # full transfer: nothing more is a failure
    jle .Lfailed
    add %rax, %rsi
    add %rax, %r10
    sub %rax, %rdx
    jnz .Lcall
    jmp .Laccepted
1:  bt $10, %rbx
    jnc 1f
    test %rax, %rax
    jnz 1f
    mov -8(%rsp), %r12          # the child's own entries and context
    mov -16(%rsp), %r13
    jmp .Lentry
1:  bt $9, %rbx
    jnc 1f
    cmp 72(%r12), %rax
    jne .Lfailed
1:  bt $8, %rbx
    jnc .Laccepted
    cmp $-4095, %rax
    jb .Laccepted
    cmp 72(%r12), %rax
    jne .Lfailed
.Laccepted:
    mov %rax, 56(%r12)
.Lnext:
    add $80, %r12
    jmp .Lentry
.Lfailed:
    mov %rax, 56(%r12)
    mov %r12, (%r13)
    mov 8(%r13), %r12
    jmp .Lentry
.Lbarrier:                      # rdi: 32-bit word, esi: parties
    mov %esi, %r14d
    mov $1, %eax
    lock xadd %eax, (%rdi)
    inc %eax
    cmp %r14d, %eax
    je .Lwake
.Lwait:
    mov (%rdi), %edx
    cmp %r14d, %edx
    jae .Lnext
    xor %esi, %esi              # FUTEX_WAIT
    xor %r10d, %r10d
    mov $202, %eax
    syscall
    jmp .Lwait
.Lwake:
    mov $1, %esi                # FUTEX_WAKE
    mov $0x7fffffff, %edx
    mov $202, %eax
    syscall
    jmp .Lnext
.Lleave:                        # rdi: where to, rsi: stack pointer, rdx and r10: what is told there
    mov %rdi, %rax
    mov %rsi, %rsp
    mov %rdx, %rdi
    mov %r10, %rsi
    jmp *%rax
rewake_executor_end:
    .popsection
