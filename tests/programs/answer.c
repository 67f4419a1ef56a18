/* A library for mem_dlopen: its answers lie on pages of their own, which nobody has read before he asks. -DANSWER: another library. */
#ifndef ANSWER
#define ANSWER 42
#endif

#define PAGES 64
#define PAGE 4096
#define LINE(n) [n] = {ANSWER + n},
#define FOUR(n) LINE(n) LINE(n + 1) LINE(n + 2) LINE(n + 3)
#define SIXTEEN(n) FOUR(n) FOUR(n + 4) FOUR(n + 8) FOUR(n + 12)

static const int answers[PAGES][PAGE / sizeof(int)] = {SIXTEEN(0) SIXTEEN(16) SIXTEEN(32) SIXTEEN(48)};

int answer(int page);
int answer(int page) { return answers[page][0]; }
