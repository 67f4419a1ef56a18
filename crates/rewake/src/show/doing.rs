//! What a thread was doing when it was frozen.

/// Position of `orig_rax` in `struct user_regs_struct` of x86-64.
const ORIG_RAX: usize = 15;

/// What the registers say: `computing`, or the name of the system call that the thread was in.
pub fn doing(registers: &[u64]) -> String {
    match registers.get(ORIG_RAX).map(|number| number.cast_signed()) {
        None => "unknown".to_owned(),
        Some(number) if number < 0 => "computing".to_owned(),
        Some(number) => call_name(number).map_or_else(|| format!("system call {number}"), str::to_owned),
    }
}

macro_rules! calls {
    ($($name:ident = $number:ident,)*) => {
        /// The name of a system call in which a thread may be found.
        fn call_name(number: i64) -> Option<&'static str> {
            match number {
                $(libc::$number => Some(stringify!($name)),)*
                _ => None,
            }
        }
    };
}

// Those that wait, and those that take long: where threads are found.
calls! {
    accept = SYS_accept,
    accept4 = SYS_accept4,
    brk = SYS_brk,
    clock_nanosleep = SYS_clock_nanosleep,
    clone = SYS_clone,
    clone3 = SYS_clone3,
    close = SYS_close,
    connect = SYS_connect,
    copy_file_range = SYS_copy_file_range,
    epoll_pwait = SYS_epoll_pwait,
    epoll_pwait2 = SYS_epoll_pwait2,
    epoll_wait = SYS_epoll_wait,
    execve = SYS_execve,
    exit = SYS_exit,
    exit_group = SYS_exit_group,
    fallocate = SYS_fallocate,
    fcntl = SYS_fcntl,
    fdatasync = SYS_fdatasync,
    flock = SYS_flock,
    fsync = SYS_fsync,
    ftruncate = SYS_ftruncate,
    futex = SYS_futex,
    futex_waitv = SYS_futex_waitv,
    getdents64 = SYS_getdents64,
    getrandom = SYS_getrandom,
    io_getevents = SYS_io_getevents,
    io_uring_enter = SYS_io_uring_enter,
    ioctl = SYS_ioctl,
    madvise = SYS_madvise,
    membarrier = SYS_membarrier,
    mmap = SYS_mmap,
    mprotect = SYS_mprotect,
    mq_timedreceive = SYS_mq_timedreceive,
    mq_timedsend = SYS_mq_timedsend,
    msgrcv = SYS_msgrcv,
    msgsnd = SYS_msgsnd,
    munmap = SYS_munmap,
    nanosleep = SYS_nanosleep,
    open = SYS_open,
    openat = SYS_openat,
    pause = SYS_pause,
    poll = SYS_poll,
    ppoll = SYS_ppoll,
    pread64 = SYS_pread64,
    preadv = SYS_preadv,
    preadv2 = SYS_preadv2,
    pselect6 = SYS_pselect6,
    ptrace = SYS_ptrace,
    pwrite64 = SYS_pwrite64,
    pwritev = SYS_pwritev,
    pwritev2 = SYS_pwritev2,
    read = SYS_read,
    readv = SYS_readv,
    recvfrom = SYS_recvfrom,
    recvmmsg = SYS_recvmmsg,
    recvmsg = SYS_recvmsg,
    restart_syscall = SYS_restart_syscall,
    rt_sigsuspend = SYS_rt_sigsuspend,
    rt_sigtimedwait = SYS_rt_sigtimedwait,
    sched_yield = SYS_sched_yield,
    select = SYS_select,
    semop = SYS_semop,
    semtimedop = SYS_semtimedop,
    sendfile = SYS_sendfile,
    sendmmsg = SYS_sendmmsg,
    sendmsg = SYS_sendmsg,
    sendto = SYS_sendto,
    splice = SYS_splice,
    sync_file_range = SYS_sync_file_range,
    tee = SYS_tee,
    userfaultfd = SYS_userfaultfd,
    vfork = SYS_vfork,
    vmsplice = SYS_vmsplice,
    wait4 = SYS_wait4,
    waitid = SYS_waitid,
    write = SYS_write,
    writev = SYS_writev,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_call(number: i64) -> String {
        let mut registers = [0; 27];
        registers[ORIG_RAX] = number.cast_unsigned();
        doing(&registers)
    }

    #[test]
    fn registers_tell_the_call() {
        assert_eq!(in_call(libc::SYS_futex), "futex");
        assert_eq!(in_call(-1), "computing");
        assert_eq!(in_call(99_999), "system call 99999");
        assert_eq!(doing(&[]), "unknown");
    }
}
