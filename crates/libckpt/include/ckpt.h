/*
 * ckpt.h: checkpoints of a program from inside (libckpt).
 *
 * Nothing of this is needed: a program that is linked with the library, or has it preloaded, makes a checkpoint when SIGFREEZE comes. With
 * these functions it also makes one by itself, says what need not be kept, is told, and keeps checkpoints away for a while.
 *
 * Results are 0 (ckpt_here: also 1), or a negative number: an error number of errno.h with its sign changed. errno is left alone. What
 * went wrong is also told in words: ckpt_error().
 *
 * A program that must also run without the library says
 *     #define CKPT_OPTIONAL
 * before it includes this file. The functions are weak then: `if (ckpt_here) ckpt_here();`. Compiled as position-independent code, which
 * is what compilers do unless told otherwise, it finds a preloaded library too; with -no-pie only one that it is linked with.
 */
#ifndef CKPT_H
#define CKPT_H

#include <stddef.h>

/* The signal that asks for a checkpoint. Shells have no name for it: kill -34 PID. */
#define SIGFREEZE 34

#ifdef __cplusplus
extern "C" {
#endif

#ifdef CKPT_OPTIONAL
#define CKPT_API __attribute__((weak))
#else
#define CKPT_API
#endif

/*
 * Makes a checkpoint now, and returns when the image is complete and durable.
 *
 * Returns 0 after the checkpoint was made, and once more 1 in every process that is woken from it. Otherwise there is no image, and the
 * program goes on:
 *   -ENOTSUP    the program has something that cannot be captured; ckpt_error() names it
 *   -EDEADLK    called by a callback, or by a thread that has disabled checkpoints
 *   -ECANCELED  checkpointing is switched off
 *   -ECHILD     called in a child made by vfork, _Fork or a direct system call, or in one made by fork whose parent lives
 *   -ENOSYS     the library is not active in this program
 *   others      of the call that failed: -ENOSPC, -EACCES, -ENOMEM...
 *
 * The other threads stand still while memory is read, and go on while the image is completed. Where another checkpoint is being made, or
 * other threads have disabled checkpoints, it waits. Any thread may call it, also several at once; signal handlers may not.
 */
int ckpt_here(void) CKPT_API;

/*
 * Leaves the pages that lie wholly in these `length` bytes out of images: caches, buffers, what can be computed again. A woken program
 * finds zeros there, or, in a private mapping of a file (its own initialised variables are such), what the file has. Memory mapped shared
 * is kept all the same. Applies to images made by this library, not to those that chkpnt makes from outside.
 *
 * The pages carry the advice MADV_DONTDUMP from then on: they are left out of core files too. munmap() ends it, free() does not: include
 * the memory again before it is given back to malloc.
 *
 * Returns 0, also when there is no whole page; -ENOMEM: not all of it is mapped; -ENOSPC: more than 1024 separate ranges; -EINVAL.
 * Any thread may call it; signal handlers may not.
 */
int ckpt_exclude(void *address, size_t length) CKPT_API;

/* Keeps all pages again that these `length` bytes touch. Returns 0; -EINVAL. Any thread may call it; signal handlers may not. */
int ckpt_include(void *address, size_t length) CKPT_API;

/*
 * Has `function(argument)` called before each checkpoint, the last registered first; and `function(how, argument)` after it, the first
 * registered first, where `how` is what ckpt_here() returns: 0, the checkpoint was made and the program goes on; 1, this is a process
 * woken from it; negative, there is no checkpoint and the program goes on.
 *
 * All callbacks of a checkpoint are called by one thread in its normal course: the one that called ckpt_here(); else, when a signal asks,
 * a thread of the library's own, which the first callback starts (it blocks all signals of the program). They may do what any thread may:
 * lock (also a lock that the one before takes and the one after gives back), allocate, print. All other threads run meanwhile: they stand
 * still only between the last callback before and the first one after. A callback cannot make a checkpoint itself (-EDEADLK), and must
 * not disable checkpoints beyond its end.
 *
 * A child (fork) begins without callbacks. Where callbacks are registered, the program must end by exit() or a return from main: the end of
 * its last thread does not end the library's.
 *
 * Returns 0; -ENOSPC: there are 64 already; -EAGAIN: no thread could be made; -EINVAL. Any thread may call it, a callback too; signal
 * handlers may not.
 */
int ckpt_on_checkpoint(void (*function)(void *argument), void *argument) CKPT_API;
int ckpt_on_resume(void (*function)(int how, void *argument), void *argument) CKPT_API;

/*
 * Forgets all callbacks that were registered with this argument. One that is being called in another thread may still be running when this
 * returns. Returns 0; -ENOENT: there is none. As to threads, see above.
 */
int ckpt_forget(void *argument) CKPT_API;

/*
 * Between these two no checkpoint is made, whichever thread calls them; a request that comes meanwhile is served when the last thread leaves
 * its last section, in ckpt_enable(). Sections may lie in one another. ckpt_disable() waits while a checkpoint makes threads stand still.
 * Both return 0; ckpt_enable() -EPERM where the thread has no section to leave. A thread that ends in a section leaves checkpoints disabled
 * for good. Any thread may call them, also in signal handlers, and at a cost of some nanoseconds.
 */
int ckpt_disable(void) CKPT_API;
int ckpt_enable(void) CKPT_API;

/* Why the last call of the calling thread that failed did so: one or two lines, never NULL, valid until its next call. */
const char *ckpt_error(void) CKPT_API;

#ifdef __cplusplus
}
#endif

#endif
