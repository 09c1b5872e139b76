//! Which system calls the command has, and why: docker's well-known list.
//!
//! The list names what is allowed, by what it is for. What is absent has often been the way into a kernel, or serves
//! nobody in a container: keyrings, which no namespace keeps apart entirely, io_uring, userfaultfd, swap, kexec, and
//! without CAP_SYS_ADMIN also mounts and namespaces, which a user namespace would open to everybody.

use libc::c_long;

use crate::config::Capabilities;
use crate::sys::seccomp::When;

/// Files, directories, their attributes, locks and what watches them: permissions decide.
const FILES: &[c_long] = &[
    libc::SYS_chdir,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fanotify_mark,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_flock,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getxattr,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_ioctl,
    libc::SYS_lgetxattr,
    libc::SYS_linkat,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_lremovexattr,
    libc::SYS_lseek,
    libc::SYS_lsetxattr,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_name_to_handle_at,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pipe2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readahead,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_removexattr,
    libc::SYS_renameat2,
    libc::SYS_sendfile,
    libc::SYS_setxattr,
    libc::SYS_splice,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_sync,
    libc::SYS_syncfs,
    libc::SYS_tee,
    libc::SYS_truncate,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_vmsplice,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Waiting for descriptors, and asynchronous I/O. io_uring is left out: a filter does not see what it is told to do.
const WAITING: &[c_long] = &[
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_io_cancel,
    libc::SYS_io_destroy,
    libc::SYS_io_getevents,
    libc::SYS_io_setup,
    libc::SYS_io_submit,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_signalfd4,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
];

/// Sockets; which families there are, `socket` itself decides.
const SOCKETS: &[c_long] = &[
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_socketpair,
];

/// The process's own memory. userfaultfd is left out: it lets races in the kernel be won.
const MEMORY: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    libc::SYS_mincore,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_mlockall,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_munlock,
    libc::SYS_munlockall,
    libc::SYS_munmap,
    libc::SYS_pkey_alloc,
    libc::SYS_pkey_free,
    libc::SYS_pkey_mprotect,
    libc::SYS_remap_file_pages,
];

/// Processes, threads, their scheduling and signals: within the container's PID namespace. Tracing is left in, for
/// debuggers: what a filter forbids, a traced process cannot do either (since Linux 4.8).
const PROCESSES: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_getpgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getpriority,
    libc::SYS_getrusage,
    libc::SYS_getsid,
    libc::SYS_gettid,
    libc::SYS_ioprio_get,
    libc::SYS_ioprio_set,
    libc::SYS_kill,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_prlimit64,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getattr,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_rr_get_interval,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_setpgid,
    libc::SYS_setpriority,
    libc::SYS_setsid,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_tkill,
    libc::SYS_wait4,
    libc::SYS_waitid,
];

/// Ids, capabilities, and giving up more: all less or equal to what there is.
const IDENTITY: &[c_long] = &[
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getuid,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    libc::SYS_prctl,
    libc::SYS_seccomp,
    libc::SYS_setfsgid,
    libc::SYS_setfsuid,
    libc::SYS_setgid,
    libc::SYS_setgroups,
    libc::SYS_setregid,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_setreuid,
    libc::SYS_setuid,
];

/// System V and POSIX queues, semaphores and shared memory: those of the IPC namespace.
const IPC: &[c_long] = &[
    libc::SYS_mq_getsetattr,
    libc::SYS_mq_notify,
    libc::SYS_mq_open,
    libc::SYS_mq_timedreceive,
    libc::SYS_mq_timedsend,
    libc::SYS_mq_unlink,
    libc::SYS_msgctl,
    libc::SYS_msgget,
    libc::SYS_msgrcv,
    libc::SYS_msgsnd,
    libc::SYS_semctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_shmdt,
    libc::SYS_shmget,
];

/// Clocks and timers. Whoever adjusts a clock needs a capability of the host.
const TIME: &[c_long] = &[
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getitimer,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_setitimer,
    libc::SYS_timer_create,
    libc::SYS_timer_delete,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_gettime,
    libc::SYS_timer_settime,
    libc::SYS_times,
];

/// Facts of the machine and random bytes.
const MACHINE: &[c_long] = &[libc::SYS_getrandom, libc::SYS_sysinfo, libc::SYS_uname];

/// Newer ones, which the libc crate does not name everywhere: their numbers are the same on all machines
/// (include/uapi/asm-generic/unistd.h).
const NEWER: &[c_long] = &[
    447, // memfd_secret
    448, // process_mrelease
    451, // cachestat
    452, // fchmodat2
    453, // map_shadow_stack
    454, // futex_wake
    455, // futex_wait
    456, // futex_requeue
];

/// Those that x86_64 has beside the others, most of them older forms.
#[cfg(target_arch = "x86_64")]
const OF_THIS_MACHINE: &[c_long] = &[
    333, // io_pgetevents
    libc::SYS_access,
    libc::SYS_alarm,
    libc::SYS_arch_prctl,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_creat,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_ctl_old,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_wait_old,
    libc::SYS_eventfd,
    libc::SYS_fork,
    libc::SYS_futimesat,
    libc::SYS_get_thread_area,
    libc::SYS_getdents,
    libc::SYS_getpgrp,
    libc::SYS_getrlimit,
    libc::SYS_inotify_init,
    libc::SYS_lchown,
    libc::SYS_link,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_mknod,
    libc::SYS_modify_ldt,
    libc::SYS_open,
    libc::SYS_pause,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_rmdir,
    libc::SYS_select,
    libc::SYS_set_thread_area,
    libc::SYS_setrlimit,
    libc::SYS_signalfd,
    libc::SYS_stat,
    libc::SYS_symlink,
    libc::SYS_sync_file_range,
    libc::SYS_time,
    libc::SYS_unlink,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_vfork,
];

/// Those of the newer architectures that the libc crate does not name for each of them
/// (include/uapi/asm-generic/unistd.h).
#[cfg(not(target_arch = "x86_64"))]
const OF_THIS_MACHINE: &[c_long] = &[
    38,  // renameat
    84,  // sync_file_range
    163, // getrlimit
    164, // setrlimit
    258, // riscv_hwprobe
    259, // riscv_flush_icache
    292, // io_pgetevents
];

/// By the capability without which they are of no use, or of a doubtful one.
const WITH_A_CAPABILITY: &[(&str, &[c_long])] = &[
    ("BPF", &[libc::SYS_bpf]),
    ("DAC_READ_SEARCH", &[libc::SYS_open_by_handle_at]),
    ("PERFMON", &[libc::SYS_perf_event_open]),
    ("SYSLOG", &[libc::SYS_syslog]),
    (
        "SYS_ADMIN",
        &[
            libc::SYS_bpf,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_fanotify_init,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_fsopen,
            libc::SYS_fspick,
            libc::SYS_lookup_dcookie,
            libc::SYS_mount,
            libc::SYS_mount_setattr,
            libc::SYS_move_mount,
            libc::SYS_open_tree,
            libc::SYS_perf_event_open,
            libc::SYS_pivot_root,
            libc::SYS_quotactl,
            libc::SYS_setdomainname,
            libc::SYS_sethostname,
            libc::SYS_setns,
            libc::SYS_syslog,
            libc::SYS_umount2,
            libc::SYS_unshare,
        ],
    ),
    ("SYS_BOOT", &[libc::SYS_reboot]),
    ("SYS_CHROOT", &[libc::SYS_chroot]),
    ("SYS_MODULE", &[libc::SYS_delete_module, libc::SYS_finit_module, libc::SYS_init_module]),
    ("SYS_NICE", &[libc::SYS_get_mempolicy, libc::SYS_mbind, libc::SYS_set_mempolicy]),
    ("SYS_PACCT", &[libc::SYS_acct]),
    ("SYS_PTRACE", &[libc::SYS_kcmp, libc::SYS_pidfd_getfd, libc::SYS_process_madvise]),
    ("SYS_TIME", &[libc::SYS_clock_settime, libc::SYS_settimeofday]),
    ("SYS_TTY_CONFIG", &[libc::SYS_vhangup]),
];

/// clone(2) with one of these (CLONE_NEW*) makes a namespace.
const NAMESPACES: u32 = 0x7e02_0000;
/// Sockets towards the hypervisor, past every network namespace (AF_VSOCK).
const VSOCK: u32 = 40;
/// Of personality(2): Linux's own with 32 or 64 bits, each with uname's release as 2.6 or not, and the question which.
const PERSONALITIES: &[u32] = &[0, 0x8, 0x2_0000, 0x2_0008, u32::MAX];

/// The calls that a command with `capabilities` has.
pub(super) fn allowed(capabilities: Capabilities) -> Vec<(c_long, When)> {
    let always =
        [FILES, WAITING, SOCKETS, MEMORY, PROCESSES, IDENTITY, IPC, TIME, MACHINE, NEWER, OF_THIS_MACHINE];
    let has = |name: &str| {
        Capabilities::named(name).is_some_and(|one| one.without(capabilities) == Capabilities::NONE)
    };
    let further = WITH_A_CAPABILITY.iter().filter(|(name, _)| has(name)).map(|(_, calls)| *calls);
    let calls = always.into_iter().chain(further).flatten();
    let mut rules: Vec<_> = calls.map(|call| (*call, When::Always)).collect();
    rules.push((libc::SYS_socket, When::FirstIsNot(VSOCK)));
    rules.push((libc::SYS_personality, When::FirstIsOneOf(PERSONALITIES)));
    if !has("SYS_ADMIN") {
        rules.push((libc::SYS_clone, When::FirstLacks(NAMESPACES)));
        // Its flags are in memory, where no filter looks; the C library takes clone instead.
        rules.push((libc::SYS_clone3, When::Missing));
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(capabilities: Capabilities, call: c_long) -> Option<When> {
        allowed(capabilities).into_iter().find(|(other, _)| *other == call).map(|(_, when)| when)
    }

    #[test]
    fn namespaces_and_mounts_come_with_sys_admin() {
        let without = Capabilities::default();
        let with = Capabilities::named("SYS_ADMIN").map(|one| without.with(one)).unwrap_or(without);
        for call in [libc::SYS_unshare, libc::SYS_mount, libc::SYS_setns, libc::SYS_clone3, libc::SYS_clone] {
            assert_ne!(rule(without, call), Some(When::Always), "{call}");
            assert_eq!(rule(with, call), Some(When::Always), "{call}");
        }
        assert_eq!(rule(without, libc::SYS_clone), Some(When::FirstLacks(NAMESPACES)));
    }

    #[test]
    fn keyrings_and_rings_are_for_nobody() {
        for call in [libc::SYS_keyctl, libc::SYS_add_key, libc::SYS_io_uring_setup, libc::SYS_userfaultfd] {
            assert_eq!(rule(Capabilities::ALL, call), None, "{call}");
        }
        assert_eq!(rule(Capabilities::NONE, libc::SYS_chroot), None);
        assert_eq!(rule(Capabilities::default(), libc::SYS_chroot), Some(When::Always));
    }

    #[test]
    fn no_call_is_listed_twice() {
        let mut calls: Vec<_> = allowed(Capabilities::default()).iter().map(|(call, _)| *call).collect();
        calls.sort_unstable();
        let listed = calls.len();
        calls.dedup();
        assert_eq!(calls.len(), listed);
    }
}
