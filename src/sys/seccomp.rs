//! Filters of system calls (seccomp(2)): rules by name become a program of the kernel's, which is installed for good.
//!
//! Names are resolved for this machine, and for the 32-bit programs that it runs too if wanted; a name that a machine
//! does not have is skipped there, as libseccomp does. A program of any other machine ends. Limits: the kernel takes
//! 4,096 instructions; a filter sees numbers only, never what an argument points to.

#![allow(unsafe_code)]

mod program;

use std::borrow::Cow;
use std::collections::BTreeMap;

use libc::{c_uint, sock_filter, sock_fprog};
use nix::errno::Errno;

/// Which system calls there are, for a process and all that it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Of those about one call the first decides whose conditions hold; those without conditions come last.
    pub(crate) rules: Vec<Rule>,
    /// What becomes of every other call.
    pub(crate) otherwise: Action,
    /// What becomes of calls that are newer than all that rules are about.
    pub(crate) newer: Action,
    /// Whether 32-bit programs run, by the same rules. Otherwise they end.
    pub(crate) with_32_bit: bool,
    /// Leave the processor's speculation as it is (SECCOMP_FILTER_FLAG_SPEC_ALLOW): without it kernels before 5.16 slow
    /// such processes down for good.
    pub(crate) speculate: bool,
    /// Log what is not allowed (SECCOMP_FILTER_FLAG_LOG).
    pub(crate) log: bool,
}

/// What becomes of some calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Such as `openat`.
    pub(crate) calls: Vec<Cow<'static, str>>,
    /// What all have to hold; at most one for each argument.
    pub(crate) conditions: Vec<Condition>,
    /// What happens then.
    pub(crate) action: Action,
}

/// A comparison of one argument with a number, both unsigned and of 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    /// Which one, from 0; below [`ARGUMENTS`].
    pub(crate) argument: u8,
    /// How.
    pub(crate) test: Test,
    /// With what.
    pub(crate) value: u64,
}

/// How an argument relates to the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Test {
    Equal,
    NotEqual,
    Less,
    AtMost,
    AtLeast,
    Greater,
    /// Equal after all bits but these are gone.
    Masked(u64),
}

/// A system call has so many arguments at most.
pub(crate) const ARGUMENTS: u8 = 6;
/// The longest program that the kernel takes (BPF_MAXINSNS).
pub(crate) const MAX_INSTRUCTIONS: usize = 4096;
/// No machine has system calls from here on but for private ones of its own.
const NUMBERS: usize = 1024;

/// What becomes of a call: a value of SECCOMP_RET_*.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Action(u32);

impl Action {
    pub(crate) const ALLOW: Self = Self(libc::SECCOMP_RET_ALLOW);
    /// Allowed, and logged by the kernel.
    pub(crate) const LOG: Self = Self(libc::SECCOMP_RET_LOG);
    /// SIGSYS, which can be caught.
    pub(crate) const TRAP: Self = Self(libc::SECCOMP_RET_TRAP);
    pub(crate) const KILL_THREAD: Self = Self(libc::SECCOMP_RET_KILL_THREAD);
    pub(crate) const KILL_PROCESS: Self = Self(libc::SECCOMP_RET_KILL_PROCESS);
    /// It fails with EPERM.
    pub(crate) const REFUSE: Self = Self(libc::SECCOMP_RET_ERRNO | Errno::EPERM as u32);
    /// It fails as one that the kernel does not have.
    pub(crate) const MISSING: Self = Self(libc::SECCOMP_RET_ERRNO | Errno::ENOSYS as u32);

    /// It fails with the error of this number.
    pub(crate) const fn fail(errno: u16) -> Self {
        Self(libc::SECCOMP_RET_ERRNO | errno as u32)
    }

    /// A tracer decides, who is told `message`; without one the call fails with ENOSYS.
    pub(crate) const fn trace(message: u16) -> Self {
        Self(libc::SECCOMP_RET_TRACE | message as u32)
    }

    const fn is_trace(self) -> bool {
        self.0 & libc::SECCOMP_RET_ACTION_FULL == libc::SECCOMP_RET_TRACE
    }
}

impl Rule {
    /// A rule about `calls`, whatever their arguments.
    pub(crate) fn of(calls: &[&'static str], action: Action) -> Self {
        Self { calls: calls.iter().copied().map(Cow::Borrowed).collect(), conditions: Vec::new(), action }
    }

    /// The rule, for calls whose argument relates so to `value`.
    pub(crate) fn when(mut self, argument: u8, test: Test, value: u64) -> Self {
        self.conditions.push(Condition { argument, test, value });
        self
    }
}

/// A kind of machine whose system calls are known here.
struct Machine {
    /// AUDIT_ARCH_* (include/uapi/linux/audit.h).
    architecture: u32,
    /// The call of a number.
    name: fn(usize) -> Option<&'static str>,
}

/// This one, and whose 32-bit programs it runs.
#[cfg(target_arch = "x86_64")]
const MACHINES: &[Machine] = &[
    Machine {
        architecture: 0xc000_003e,
        name: |number| syscalls::x86_64::Sysno::new(number).map(|call| call.name()),
    },
    Machine {
        architecture: 0x4000_0003,
        name: |number| syscalls::x86::Sysno::new(number).map(|call| call.name()),
    },
];
#[cfg(target_arch = "aarch64")]
const MACHINES: &[Machine] = &[
    Machine {
        architecture: 0xc000_00b7,
        name: |number| syscalls::aarch64::Sysno::new(number).map(|call| call.name()),
    },
    Machine {
        architecture: 0x4000_0028,
        name: |number| syscalls::arm::Sysno::new(number).map(|call| call.name()),
    },
];
#[cfg(target_arch = "riscv64")]
const MACHINES: &[Machine] = &[Machine {
    architecture: 0xc000_00f3,
    name: |number| syscalls::riscv64::Sysno::new(number).map(|call| call.name()),
}];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
const MACHINES: &[Machine] = &[];

/// What docker calls this machine.
pub(crate) const DOCKERS_ARCHITECTURE: &str = if cfg!(target_arch = "x86_64") {
    "amd64"
} else if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    std::env::consts::ARCH
};
/// What libseccomp calls this machine, and that of its 32-bit programs.
pub(crate) const ARCHITECTURES: Option<[&str; 2]> = if cfg!(target_arch = "x86_64") {
    Some(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"])
} else if cfg!(target_arch = "aarch64") {
    Some(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"])
} else {
    None
};

/// Whether filters can be made for this kind of machine.
pub(crate) const fn is_known_machine() -> bool {
    !MACHINES.is_empty()
}

/// Whether any machine that is known here has a call of this name.
#[cfg(test)]
pub(crate) fn is_call(name: &str) -> bool {
    MACHINES.iter().any(|machine| machine.numbers().contains_key(name))
}

impl Machine {
    fn numbers(&self) -> BTreeMap<&'static str, u32> {
        (0..NUMBERS).filter_map(|number| Some(((self.name)(number)?, number as u32))).collect()
    }
}

/// A filter as the kernel takes it.
#[derive(Clone)]
pub(crate) struct Program {
    instructions: Vec<sock_filter>,
    flags: c_uint,
}

impl Filter {
    /// Only those of `rules`; what they do not name fails with EPERM, and with ENOSYS if it is newer.
    pub(crate) fn allowing(rules: Vec<Rule>) -> Self {
        let (otherwise, newer) = (Action::REFUSE, Action::MISSING);
        Self { rules, otherwise, newer, with_32_bit: true, speculate: true, log: false }
    }

    /// All but what `rules` say.
    pub(crate) fn forbidding(rules: Vec<Rule>) -> Self {
        let (otherwise, newer) = (Action::ALLOW, Action::ALLOW);
        Self { rules, otherwise, newer, with_32_bit: false, speculate: true, log: false }
    }

    /// Whether `call` can succeed with some arguments.
    pub(crate) fn may_allow(&self, call: &str) -> bool {
        let mut about = self.rules.iter().filter(|rule| rule.calls.iter().any(|name| name == call));
        let permits = |action: Action| [Action::ALLOW, Action::LOG].contains(&action) || action.is_trace();
        let decided = about.clone().any(|rule| rule.conditions.is_empty());
        about.any(|rule| permits(rule.action)) || (!decided && permits(self.otherwise))
    }

    /// The filter for this machine. E2BIG if it has more than [`MAX_INSTRUCTIONS`], ENOSYS if the machine is unknown.
    pub(crate) fn compile(&self) -> nix::Result<Program> {
        if MACHINES.is_empty() {
            return Err(Errno::ENOSYS);
        }
        let machines = MACHINES.iter().take(if self.with_32_bit { MACHINES.len() } else { 1 });
        let instructions = program::of(
            machines.map(|machine| (machine.architecture, program::Calls::new(self, &machine.numbers()))),
        );
        if instructions.len() > MAX_INSTRUCTIONS {
            return Err(Errno::E2BIG);
        }
        let flag = |wanted: bool, flag: libc::c_ulong| if wanted { flag as c_uint } else { 0 };
        let flags = flag(self.speculate, libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW)
            | flag(self.log, libc::SECCOMP_FILTER_FLAG_LOG);
        Ok(Program { instructions, flags })
    }
}

impl Program {
    /// From now on the rules hold for this thread and all that it starts. Needs PR_SET_NO_NEW_PRIVS, or CAP_SYS_ADMIN in
    /// the process's user namespace.
    pub(crate) fn install(&self) -> nix::Result<()> {
        let len = u16::try_from(self.instructions.len()).map_err(|_| Errno::E2BIG)?;
        let program = sock_fprog { len, filter: self.instructions.as_ptr().cast_mut() };
        let operation = libc::SECCOMP_SET_MODE_FILTER;
        // SAFETY: the program is as long as it says and outlives the call, which copies and does not change it.
        let done = unsafe { libc::syscall(libc::SYS_seccomp, operation, self.flags, &raw const program) };
        Errno::result(done).map(drop)
    }
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Program of {} instructions", self.instructions.len())
    }
}
