/* The main function of programs whose own one was renamed ckpt_target. Everything else the library does by itself, before main. */
#include <stdio.h>

/* By this name linkers find the rest of the library. */
extern const char rewake_ckpt_start;
const char *const rewake_ckpt_part __attribute__((used)) = &rewake_ckpt_start;

int ckpt_target(int argc, char **argv, char **envp) __attribute__((weak));

__attribute__((weak)) int main(int argc, char **argv, char **envp)
{
    if (!ckpt_target) {
        fputs("libckpt: there is no function ckpt_target\n"
              "  rename main to ckpt_target (or compile with -Dmain=ckpt_target); a C++ main must be extern \"C\", or preload the library\n",
              stderr);
        return 125;
    }
    return ckpt_target(argc, argv, envp);
}
