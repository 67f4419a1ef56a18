/* The main function of programs whose own one was renamed ckpt_target. Everything else the library does by itself, before main. */
#include <stdio.h>

/* By this name linkers find the rest of the library. */
extern const char rewake_ckpt_start;
const char *const rewake_ckpt_part __attribute__((used)) = &rewake_ckpt_start;

/* A preloaded copy of the library finds this in the program's headers, and stands back. */
__asm__(".pushsection .note.rewake,\"a\",@note\n"
        ".balign 4\n"
        ".long 7, 0, 1\n"
        ".asciz \"Rewake\"\n"
        ".balign 4\n"
        ".popsection");

int ckpt_target(int argc, char **argv, char **envp) __attribute__((weak));

/* The same in C++, by what the parameters are: none; int, char ** (argv[]); a third one; and with const in one place or another. */
#define CXX(name, mangled) int name(int argc, char **argv, char **envp) __asm__(mangled) __attribute__((weak))
CXX(cxx_none, "_Z11ckpt_targetv");
CXX(cxx_two, "_Z11ckpt_targetiPPc");
CXX(cxx_three, "_Z11ckpt_targetiPPcS0_");
CXX(cxx_const_text, "_Z11ckpt_targetiPPKc");
CXX(cxx_const_list, "_Z11ckpt_targetiPKPc");
CXX(cxx_const_both, "_Z11ckpt_targetiPKPKc");
CXX(cxx_three_const_text, "_Z11ckpt_targetiPPKcS1_");
CXX(cxx_three_const_list, "_Z11ckpt_targetiPKPcS1_");

__attribute__((weak)) int main(int argc, char **argv, char **envp)
{
    int (*const targets[])(int, char **, char **) = {
        ckpt_target,    cxx_none,       cxx_two,              cxx_three,           cxx_const_text,
        cxx_const_list, cxx_const_both, cxx_three_const_text, cxx_three_const_list,
    };
    for (unsigned at = 0; at < sizeof targets / sizeof *targets; at++) {
        if (targets[at])
            return targets[at](argc, argv, envp);
    }
    fputs("libckpt: there is no function ckpt_target\n"
          "  rename main to ckpt_target (or compile with -Dmain=ckpt_target), or leave main as it is; a main that is in an archive: preload the library\n",
          stderr);
    return 125;
}
