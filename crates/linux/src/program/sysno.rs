//! Names and numbers of the system calls that programs use.

macro_rules! sysno {
    ($($name:ident = $number:ident)*) => {
        /// A system call, by its kernel name.
        #[allow(non_camel_case_types, missing_docs, reason = "the names are the kernel's")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Sysno { $($name),* }

        impl Sysno {
            /// The kernel's name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),* }
            }

            /// The number in the native calling convention.
            #[must_use]
            pub const fn number(self) -> u64 {
                let number = match self { $(Self::$name => libc::$number),* };
                number.cast_unsigned()
            }
        }
    };
}

sysno! {
    accept4 = SYS_accept4
    arch_prctl = SYS_arch_prctl
    bind = SYS_bind
    brk = SYS_brk
    capset = SYS_capset
    chdir = SYS_chdir
    chroot = SYS_chroot
    clock_getres = SYS_clock_getres
    clock_nanosleep = SYS_clock_nanosleep
    clone = SYS_clone
    clone3 = SYS_clone3
    close = SYS_close
    close_range = SYS_close_range
    connect = SYS_connect
    dup2 = SYS_dup2
    dup3 = SYS_dup3
    epoll_create1 = SYS_epoll_create1
    epoll_ctl = SYS_epoll_ctl
    epoll_pwait = SYS_epoll_pwait
    eventfd2 = SYS_eventfd2
    exit = SYS_exit
    exit_group = SYS_exit_group
    fanotify_init = SYS_fanotify_init
    fanotify_mark = SYS_fanotify_mark
    fchdir = SYS_fchdir
    fchmod = SYS_fchmod
    fchmodat = SYS_fchmodat
    fchown = SYS_fchown
    fchownat = SYS_fchownat
    fcntl = SYS_fcntl
    flock = SYS_flock
    fork = SYS_fork
    ftruncate = SYS_ftruncate
    futex = SYS_futex
    get_mempolicy = SYS_get_mempolicy
    getitimer = SYS_getitimer
    getpgid = SYS_getpgid
    getpid = SYS_getpid
    getppid = SYS_getppid
    getpriority = SYS_getpriority
    getresuid = SYS_getresuid
    getrlimit = SYS_getrlimit
    getsid = SYS_getsid
    gettid = SYS_gettid
    inotify_add_watch = SYS_inotify_add_watch
    inotify_init1 = SYS_inotify_init1
    inotify_rm_watch = SYS_inotify_rm_watch
    io_getevents = SYS_io_getevents
    io_setup = SYS_io_setup
    io_submit = SYS_io_submit
    ioctl = SYS_ioctl
    ioprio_set = SYS_ioprio_set
    keyctl = SYS_keyctl
    kill = SYS_kill
    listen = SYS_listen
    lseek = SYS_lseek
    madvise = SYS_madvise
    mbind = SYS_mbind
    membarrier = SYS_membarrier
    memfd_create = SYS_memfd_create
    mincore = SYS_mincore
    mkdirat = SYS_mkdirat
    mknodat = SYS_mknodat
    mlock2 = SYS_mlock2
    mlockall = SYS_mlockall
    mmap = SYS_mmap
    modify_ldt = SYS_modify_ldt
    mount = SYS_mount
    mprotect = SYS_mprotect
    mq_notify = SYS_mq_notify
    mq_open = SYS_mq_open
    mq_timedreceive = SYS_mq_timedreceive
    mq_timedsend = SYS_mq_timedsend
    mq_unlink = SYS_mq_unlink
    mremap = SYS_mremap
    mseal = SYS_mseal
    msgctl = SYS_msgctl
    msgget = SYS_msgget
    msgrcv = SYS_msgrcv
    msgsnd = SYS_msgsnd
    msync = SYS_msync
    munmap = SYS_munmap
    nanosleep = SYS_nanosleep
    openat = SYS_openat
    personality = SYS_personality
    pidfd_getfd = SYS_pidfd_getfd
    pidfd_open = SYS_pidfd_open
    pipe2 = SYS_pipe2
    poll = SYS_poll
    prctl = SYS_prctl
    pread64 = SYS_pread64
    preadv = SYS_preadv
    prlimit64 = SYS_prlimit64
    process_vm_readv = SYS_process_vm_readv
    pwrite64 = SYS_pwrite64
    read = SYS_read
    readlinkat = SYS_readlinkat
    recvfrom = SYS_recvfrom
    renameat = SYS_renameat
    rseq = SYS_rseq
    rt_sigaction = SYS_rt_sigaction
    rt_sigpending = SYS_rt_sigpending
    rt_sigprocmask = SYS_rt_sigprocmask
    rt_sigqueueinfo = SYS_rt_sigqueueinfo
    rt_sigreturn = SYS_rt_sigreturn
    rt_sigtimedwait = SYS_rt_sigtimedwait
    rt_tgsigqueueinfo = SYS_rt_tgsigqueueinfo
    sched_setaffinity = SYS_sched_setaffinity
    sched_setattr = SYS_sched_setattr
    sched_yield = SYS_sched_yield
    seccomp = SYS_seccomp
    semctl = SYS_semctl
    semget = SYS_semget
    semop = SYS_semop
    sendmsg = SYS_sendmsg
    set_mempolicy = SYS_set_mempolicy
    set_robust_list = SYS_set_robust_list
    set_tid_address = SYS_set_tid_address
    setfsgid = SYS_setfsgid
    setfsuid = SYS_setfsuid
    setgroups = SYS_setgroups
    setitimer = SYS_setitimer
    setns = SYS_setns
    setpgid = SYS_setpgid
    setpriority = SYS_setpriority
    setresgid = SYS_setresgid
    setresuid = SYS_setresuid
    setsid = SYS_setsid
    shmat = SYS_shmat
    shmctl = SYS_shmctl
    shmget = SYS_shmget
    shutdown = SYS_shutdown
    sigaltstack = SYS_sigaltstack
    signalfd4 = SYS_signalfd4
    socket = SYS_socket
    socketpair = SYS_socketpair
    tgkill = SYS_tgkill
    timer_create = SYS_timer_create
    timer_delete = SYS_timer_delete
    timer_getoverrun = SYS_timer_getoverrun
    timer_gettime = SYS_timer_gettime
    timer_settime = SYS_timer_settime
    timerfd_create = SYS_timerfd_create
    timerfd_gettime = SYS_timerfd_gettime
    timerfd_settime = SYS_timerfd_settime
    setsockopt = SYS_setsockopt
    umask = SYS_umask
    unlinkat = SYS_unlinkat
    unshare = SYS_unshare
    userfaultfd = SYS_userfaultfd
    vmsplice = SYS_vmsplice
    wait4 = SYS_wait4
    waitid = SYS_waitid
    write = SYS_write
    writev = SYS_writev
}
