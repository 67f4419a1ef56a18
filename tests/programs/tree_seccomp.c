/* Seccomp filters of each process: one that the parent has and its later child, one of that child alone, none in an earlier child. */
#include "tree.h"
#include <linux/seccomp.h>
#include <linux/filter.h>
#include <stddef.h>
#include <sys/prctl.h>
static void deny(int nr,int err){ struct sock_filter f[]={ BPF_STMT(BPF_LD|BPF_W|BPF_ABS,offsetof(struct seccomp_data,nr)), BPF_JUMP(BPF_JMP|BPF_JEQ|BPF_K,nr,0,1), BPF_STMT(BPF_RET|BPF_K,SECCOMP_RET_ERRNO|err), BPF_STMT(BPF_RET|BPF_K,SECCOMP_RET_ALLOW)}; struct sock_fprog p={4,f}; TRY(prctl(PR_SET_NO_NEW_PRIVS,1,0,0,0)); TRY(prctl(PR_SET_SECCOMP,SECCOMP_MODE_FILTER,&p)); }
int main(int c,char**v){ probe_start(c,v); tree_begin(); pid_t free_=tree_fork(); if(!free_){ pid_t p=getpid(),q=getppid(); tree_set_up(); tree_wait(p,q); CHECK(getpgid(0)>0,"free"); _exit(0);} deny(SYS_getpgid,50); pid_t a=tree_fork(); if(!a){ deny(SYS_getsid,51); pid_t p=getpid(),q=getppid(); tree_set_up(); tree_wait(p,q); CHECK(syscall(SYS_getpgid,0)==-1&&errno==50&&syscall(SYS_getsid,0)==-1&&errno==51,"child"); _exit(1);} tree_ready(2); probe_wait(); CHECK(syscall(SYS_getpgid,0)==-1&&errno==50,"parent"); CHECK(syscall(SYS_getsid,0)>=0,"parent sid"); tree_ends(free_,0); tree_ends(a,1<<8); return probe_pass(); }
