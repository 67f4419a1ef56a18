/*
 * Ceilings, read when the library is built. None has to be set: tables grow as they must. Who sets one gets a clear error when it is
 * passed, instead of a checkpoint that takes more than was meant for it.
 *
 * Another file is read when the environment variable CKPT_USER_CONFIG names one while the library is built.
 */
#ifndef CKPT_USER_CONFIG_H
#define CKPT_USER_CONFIG_H

/* Bytes of the path of a store, its end included: 256 to 4096. */
/* #define CKPT_MAXPATHSIZE 4096 */

/* Processes that are checkpointed together. */
/* #define CKPT_MAXPROCESSES 64 */

/* System V semaphore sets, and semaphores in one of them. */
/* #define CKPT_MAXSEM 64 */
/* #define CKPT_MAXSEMVECSIZE 250 */

/* System V message queues. */
/* #define CKPT_MAXMSG 64 */

/* System V shared memory segments. */
/* #define CKPT_MAXSHM 64 */

#endif
