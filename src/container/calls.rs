//! Which system calls the command has, and why: docker's well-known list.
//!
//! The list names what is allowed, by what it is for. What is absent has often been the way into a kernel, or serves
//! nobody in a container: keyrings, which no namespace keeps apart entirely, io_uring, userfaultfd, swap, kexec, and
//! without CAP_SYS_ADMIN also mounts and namespaces, which a user namespace would open to everybody.

use crate::config::Capabilities;
use crate::sys::seccomp::{Action, Filter, Rule, Test};

/// Files, directories, their attributes, locks and what watches them: permissions decide.
const FILES: &[&str] = &[
    "cachestat",
    "chdir",
    "close",
    "close_range",
    "copy_file_range",
    "dup",
    "dup3",
    "faccessat",
    "faccessat2",
    "fadvise64",
    "fallocate",
    "fanotify_mark",
    "fchdir",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "fchown",
    "fchownat",
    "fcntl",
    "fdatasync",
    "fgetxattr",
    "flistxattr",
    "flock",
    "fremovexattr",
    "fsetxattr",
    "fstat",
    "fstatfs",
    "fsync",
    "ftruncate",
    "getcwd",
    "getdents64",
    "getxattr",
    "inotify_add_watch",
    "inotify_init1",
    "inotify_rm_watch",
    "ioctl",
    "lgetxattr",
    "linkat",
    "listxattr",
    "llistxattr",
    "lremovexattr",
    "lseek",
    "lsetxattr",
    "mkdirat",
    "mknodat",
    "name_to_handle_at",
    "newfstatat",
    "openat",
    "openat2",
    "pipe2",
    "pread64",
    "preadv",
    "preadv2",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "read",
    "readahead",
    "readlinkat",
    "readv",
    "removexattr",
    "renameat2",
    "sendfile",
    "setxattr",
    "splice",
    "statfs",
    "statx",
    "symlinkat",
    "sync",
    "sync_file_range",
    "syncfs",
    "tee",
    "truncate",
    "umask",
    "unlinkat",
    "utimensat",
    "vmsplice",
    "write",
    "writev",
];

/// Waiting for descriptors, and asynchronous I/O. io_uring is left out: a filter does not see what it is told to do.
const WAITING: &[&str] = &[
    "epoll_create1",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_pwait2",
    "eventfd2",
    "io_cancel",
    "io_destroy",
    "io_getevents",
    "io_pgetevents",
    "io_setup",
    "io_submit",
    "ppoll",
    "pselect6",
    "signalfd4",
    "timerfd_create",
    "timerfd_gettime",
    "timerfd_settime",
];

/// Sockets; which families there are, `socket` itself decides.
const SOCKETS: &[&str] = &[
    "accept",
    "accept4",
    "bind",
    "connect",
    "getpeername",
    "getsockname",
    "getsockopt",
    "listen",
    "recvfrom",
    "recvmmsg",
    "recvmsg",
    "sendmmsg",
    "sendmsg",
    "sendto",
    "setsockopt",
    "shutdown",
    "socketpair",
];

/// The process's own memory. userfaultfd is left out: it lets races in the kernel be won.
const MEMORY: &[&str] = &[
    "brk",
    "madvise",
    "map_shadow_stack",
    "membarrier",
    "memfd_create",
    "memfd_secret",
    "mincore",
    "mlock",
    "mlock2",
    "mlockall",
    "mmap",
    "mprotect",
    "mremap",
    "msync",
    "munlock",
    "munlockall",
    "munmap",
    "pkey_alloc",
    "pkey_free",
    "pkey_mprotect",
    "remap_file_pages",
];

/// Processes, threads, their scheduling and signals: within the container's PID namespace. Tracing is left in, for
/// debuggers: what a filter forbids, a traced process cannot do either (since Linux 4.8).
const PROCESSES: &[&str] = &[
    "execve",
    "execveat",
    "exit",
    "exit_group",
    "futex",
    "futex_requeue",
    "futex_wait",
    "futex_waitv",
    "futex_wake",
    "get_robust_list",
    "getcpu",
    "getpgid",
    "getpid",
    "getppid",
    "getpriority",
    "getrusage",
    "getsid",
    "gettid",
    "ioprio_get",
    "ioprio_set",
    "kill",
    "pidfd_open",
    "pidfd_send_signal",
    "prlimit64",
    "process_mrelease",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "restart_syscall",
    "rseq",
    "rt_sigaction",
    "rt_sigpending",
    "rt_sigprocmask",
    "rt_sigqueueinfo",
    "rt_sigreturn",
    "rt_sigsuspend",
    "rt_sigtimedwait",
    "rt_tgsigqueueinfo",
    "sched_get_priority_max",
    "sched_get_priority_min",
    "sched_getaffinity",
    "sched_getattr",
    "sched_getparam",
    "sched_getscheduler",
    "sched_rr_get_interval",
    "sched_setaffinity",
    "sched_setattr",
    "sched_setparam",
    "sched_setscheduler",
    "sched_yield",
    "set_robust_list",
    "set_tid_address",
    "setpgid",
    "setpriority",
    "setsid",
    "sigaltstack",
    "tgkill",
    "tkill",
    "wait4",
    "waitid",
];

/// Ids, capabilities, and giving up more: all less or equal to what there is.
const IDENTITY: &[&str] = &[
    "capget",
    "capset",
    "getegid",
    "geteuid",
    "getgid",
    "getgroups",
    "getresgid",
    "getresuid",
    "getuid",
    "landlock_add_rule",
    "landlock_create_ruleset",
    "landlock_restrict_self",
    "prctl",
    "seccomp",
    "setfsgid",
    "setfsuid",
    "setgid",
    "setgroups",
    "setregid",
    "setresgid",
    "setresuid",
    "setreuid",
    "setuid",
];

/// System V and POSIX queues, semaphores and shared memory: those of the IPC namespace.
const IPC: &[&str] = &[
    "mq_getsetattr",
    "mq_notify",
    "mq_open",
    "mq_timedreceive",
    "mq_timedsend",
    "mq_unlink",
    "msgctl",
    "msgget",
    "msgrcv",
    "msgsnd",
    "semctl",
    "semget",
    "semop",
    "semtimedop",
    "shmat",
    "shmctl",
    "shmdt",
    "shmget",
];

/// Clocks and timers. Whoever adjusts a clock needs a capability of the host.
const TIME: &[&str] = &[
    "adjtimex",
    "clock_adjtime",
    "clock_getres",
    "clock_gettime",
    "clock_nanosleep",
    "getitimer",
    "gettimeofday",
    "nanosleep",
    "setitimer",
    "timer_create",
    "timer_delete",
    "timer_getoverrun",
    "timer_gettime",
    "timer_settime",
    "times",
];

/// Facts of the machine and random bytes.
const MACHINE: &[&str] = &["getrandom", "sysinfo", "uname"];

/// Older forms, which not all machines have.
const OLDER: &[&str] = &[
    "access",
    "alarm",
    "chmod",
    "chown",
    "creat",
    "dup2",
    "epoll_create",
    "epoll_ctl_old",
    "epoll_wait",
    "epoll_wait_old",
    "eventfd",
    "fork",
    "futimesat",
    "get_thread_area",
    "getdents",
    "getpgrp",
    "getrlimit",
    "inotify_init",
    "lchown",
    "link",
    "lstat",
    "mkdir",
    "mknod",
    "open",
    "pause",
    "pipe",
    "poll",
    "readdir",
    "readlink",
    "rename",
    "renameat",
    "rmdir",
    "select",
    "set_thread_area",
    "setrlimit",
    "sigaction",
    "signal",
    "signalfd",
    "sigpending",
    "sigprocmask",
    "sigreturn",
    "sigsuspend",
    "stat",
    "symlink",
    "time",
    "unlink",
    "utime",
    "utimes",
    "vfork",
    "waitpid",
];

/// Wider forms of 32-bit machines. socketcall is left out, as it hides which family of sockets is meant.
const FOR_32_BIT: &[&str] = &[
    "_llseek",
    "_newselect",
    "chown32",
    "clock_adjtime64",
    "clock_getres_time64",
    "clock_gettime64",
    "clock_nanosleep_time64",
    "fadvise64_64",
    "fchown32",
    "fcntl64",
    "fstat64",
    "fstatat64",
    "fstatfs64",
    "ftruncate64",
    "futex_time64",
    "getegid32",
    "geteuid32",
    "getgid32",
    "getgroups32",
    "getresgid32",
    "getresuid32",
    "getuid32",
    "io_pgetevents_time64",
    "ipc",
    "lchown32",
    "lstat64",
    "mmap2",
    "mq_timedreceive_time64",
    "mq_timedsend_time64",
    "ppoll_time64",
    "pselect6_time64",
    "recvmmsg_time64",
    "rt_sigtimedwait_time64",
    "sched_rr_get_interval_time64",
    "semtimedop_time64",
    "sendfile64",
    "setfsgid32",
    "setfsuid32",
    "setgid32",
    "setgroups32",
    "setregid32",
    "setresgid32",
    "setresuid32",
    "setreuid32",
    "setuid32",
    "stat64",
    "statfs64",
    "timer_gettime64",
    "timer_settime64",
    "timerfd_gettime64",
    "timerfd_settime64",
    "truncate64",
    "ugetrlimit",
    "utimensat_time64",
];

/// What single kinds of machines have beside the others: thread areas, caches.
const OF_SOME_MACHINES: &[&str] = &[
    "arch_prctl",
    "arm_fadvise64_64",
    "arm_sync_file_range",
    "breakpoint",
    "cacheflush",
    "modify_ldt",
    "recv",
    "riscv_flush_icache",
    "riscv_hwprobe",
    "send",
    "set_tls",
    "sync_file_range2",
];

/// By the capability without which they are of no use, or of a doubtful one.
const WITH_A_CAPABILITY: &[(&str, &[&str])] = &[
    ("BPF", &["bpf"]),
    ("DAC_READ_SEARCH", &["open_by_handle_at"]),
    ("PERFMON", &["perf_event_open"]),
    ("SYSLOG", &["syslog"]),
    (
        "SYS_ADMIN",
        &[
            "bpf",
            "clone",
            "clone3",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "perf_event_open",
            "pivot_root",
            "quotactl",
            "setdomainname",
            "sethostname",
            "setns",
            "syslog",
            "umount2",
            "unshare",
        ],
    ),
    ("SYS_BOOT", &["reboot"]),
    ("SYS_CHROOT", &["chroot"]),
    ("SYS_MODULE", &["delete_module", "finit_module", "init_module"]),
    ("SYS_NICE", &["get_mempolicy", "mbind", "set_mempolicy"]),
    ("SYS_PACCT", &["acct"]),
    ("SYS_PTRACE", &["kcmp", "pidfd_getfd", "process_madvise"]),
    ("SYS_TIME", &["clock_settime", "settimeofday"]),
    ("SYS_TTY_CONFIG", &["vhangup"]),
];

/// clone(2) with one of these (CLONE_NEW*) makes a namespace.
const NAMESPACES: u64 = 0x7e02_0000;
/// Sockets towards the hypervisor, past every network namespace (AF_VSOCK).
const VSOCK: u64 = 40;
/// The kernel looks at so much of a socket's family.
const INT: u64 = 0xffff_ffff;
/// Of personality(2): Linux's own with 32 or 64 bits, each with uname's release as 2.6 or not, and the question which.
const PERSONALITIES: &[u64] = &[0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The calls that a command with `capabilities` has.
pub(super) fn of_docker(capabilities: Capabilities) -> Filter {
    let always = [
        FILES,
        WAITING,
        SOCKETS,
        MEMORY,
        PROCESSES,
        IDENTITY,
        IPC,
        TIME,
        MACHINE,
        OLDER,
        FOR_32_BIT,
        OF_SOME_MACHINES,
    ];
    let has = |name: &str| Capabilities::named(name).is_some_and(|one| capabilities.contains(one));
    let further = WITH_A_CAPABILITY.iter().filter(|(name, _)| has(name)).map(|(_, calls)| *calls);
    let mut rules: Vec<_> =
        always.into_iter().chain(further).map(|calls| Rule::of(calls, Action::ALLOW)).collect();
    rules.push(Rule::of(&["socket"], Action::REFUSE).when(0, Test::Masked(INT), VSOCK));
    rules.push(Rule::of(&["socket"], Action::ALLOW));
    let personality = |value| Rule::of(&["personality"], Action::ALLOW).when(0, Test::Equal, value);
    rules.extend(PERSONALITIES.iter().copied().map(personality));
    if !has("SYS_ADMIN") {
        rules.push(Rule::of(&["clone"], Action::ALLOW).when(0, Test::Masked(NAMESPACES), 0));
        // Its flags are in memory, where no filter looks; the C library takes clone instead.
        rules.push(Rule::of(&["clone3"], Action::MISSING));
    }
    Filter::allowing(rules)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::seccomp;

    /// What a command with `capabilities` may do whatever the arguments are.
    fn always(capabilities: Capabilities) -> Vec<String> {
        let rules = of_docker(capabilities).rules;
        let plain = rules.iter().filter(|rule| rule.conditions.is_empty() && rule.action == Action::ALLOW);
        plain.flat_map(|rule| rule.calls.iter().map(ToString::to_string)).collect()
    }

    #[test]
    fn namespaces_and_mounts_come_with_sys_admin() {
        let without = always(Capabilities::default());
        let with = always(Capabilities::named("SYS_ADMIN").expect("there is one"));
        for call in ["unshare", "mount", "setns", "clone3", "clone"] {
            assert!(!without.iter().any(|name| name == call), "{call}");
            assert!(with.iter().any(|name| name == call), "{call}");
        }
    }

    #[test]
    fn keyrings_and_rings_are_for_nobody() {
        let most = always(Capabilities::ALL);
        for call in ["keyctl", "add_key", "io_uring_setup", "userfaultfd", "kexec_load", "swapon"] {
            assert!(!most.iter().any(|name| name == call), "{call}");
        }
        let has_chroot = |calls: Vec<String>| calls.iter().any(|name| name == "chroot");
        assert!(!has_chroot(always(Capabilities::NONE)));
        assert!(has_chroot(always(Capabilities::default())));
    }

    #[test]
    fn no_call_is_listed_twice_or_misspelt() {
        let mut calls = always(Capabilities::default());
        let listed = calls.len();
        calls.sort_unstable();
        calls.dedup();
        assert_eq!(calls.len(), listed);
        if seccomp::is_known_machine() {
            let elsewhere = |name: &str| OF_SOME_MACHINES.contains(&name) || name.starts_with("epoll_");
            let unknown: Vec<_> =
                calls.iter().filter(|name| !elsewhere(name) && !seccomp::is_call(name)).collect();
            assert!(unknown.is_empty(), "{unknown:?}");
        }
    }
}
