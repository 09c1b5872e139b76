//! Filters of system calls (seccomp(2)): what is to happen at which call becomes a program, and is installed for good.
//!
//! A filter sees numbers only: of the call, and its arguments. Here rules look at the lower half of the first one.

#![allow(unsafe_code)]

use libc::{c_long, c_uint, sock_filter, sock_fprog};
use nix::errno::Errno;

/// When a system call is allowed. One that is not fails with EPERM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    Always,
    /// If its first argument has none of these bits.
    FirstLacks(u32),
    /// If its first argument is another.
    FirstIsNot(u32),
    /// If its first argument is one of these.
    FirstIsOneOf(&'static [u32]),
    /// Never, and it fails as one that the kernel does not have.
    Missing,
}

/// Of `struct seccomp_data`: where the number of the system call is, the architecture, and the first argument's lower half.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const FIRST_AT: u32 = if cfg!(target_endian = "little") { 16 } else { 20 };
/// include/uapi/linux/audit.h; `None` where it is not known here, and then not checked.
const ARCHITECTURE: Option<u32> = if cfg!(target_arch = "x86_64") {
    Some(0xc000_003e)
} else if cfg!(target_arch = "aarch64") {
    Some(0xc000_00b7)
} else if cfg!(target_arch = "riscv64") {
    Some(0xc000_00f3)
} else {
    None
};
/// Numbers from here on are those of the x32 ABI on x86_64, and nobody's elsewhere.
const X32_NUMBERS: u32 = 0x4000_0000;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const IF_ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const ALLOW: sock_filter = instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW);
const KILL: sock_filter = instruction(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS);
const REFUSE: sock_filter = failure(Errno::EPERM);
const MISSING: sock_filter = failure(Errno::ENOSYS);

const fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

const fn failure(errno: Errno) -> sock_filter {
    instruction(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32)
}

/// Whether [`allow_only`] knows this kind of machine.
pub(crate) const fn is_known_machine() -> bool {
    ARCHITECTURE.is_some()
}

/// From now on each of `calls` (`SYS_*`) ends this process, in threads started later too. Needs PR_SET_NO_NEW_PRIVS.
pub(crate) fn forbid_calls(calls: &[c_long]) -> nix::Result<()> {
    install(&mut forbidding(calls), 0)
}

/// From now on this process, and all that it starts, has only those of `calls` (`SYS_*`) that their rule allows; a rule
/// with a condition counts before one without. What is newer than all of them is missing; another architecture's call is
/// the end. Needs PR_SET_NO_NEW_PRIVS, or CAP_SYS_ADMIN in the process's user namespace.
pub(crate) fn allow_only(calls: &[(c_long, When)]) -> nix::Result<()> {
    // As every container runtime does: without it kernels before 5.16 slow such processes down for good.
    install(&mut allowing(calls), libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as c_uint)
}

fn install(program: &mut [sock_filter], flags: c_uint) -> nix::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
    let program = sock_fprog { len, filter: program.as_mut_ptr() };
    let operation = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the program is as long as it says and outlives the call, which copies it.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, operation, flags, &raw const program) };
    Errno::result(done).map(drop)
}

/// Ends whoever comes from another architecture.
fn own_architecture() -> Vec<sock_filter> {
    ARCHITECTURE.map_or(Vec::new(), |architecture| {
        vec![instruction(LOAD, 0, 0, ARCHITECTURE_AT), instruction(IF_EQUAL, 1, 0, architecture), KILL]
    })
}

fn forbidding(calls: &[c_long]) -> Vec<sock_filter> {
    let mut program = own_architecture();
    program.extend([instruction(LOAD, 0, 0, NUMBER_AT), instruction(IF_AT_LEAST, 0, 1, X32_NUMBERS), KILL]);
    for call in calls {
        program.extend([instruction(IF_EQUAL, 0, 1, *call as u32), KILL]);
    }
    program.push(ALLOW);
    program
}

/// First the calls that depend on more than their number, then runs of numbers that are allowed, in ascending order.
fn allowing(calls: &[(c_long, When)]) -> Vec<sock_filter> {
    let mut program = own_architecture();
    program.push(instruction(LOAD, 0, 0, NUMBER_AT));
    for (call, when) in calls {
        let verdict = conditional(*when);
        if let Ok(len @ 1..) = u8::try_from(verdict.len()) {
            program.push(instruction(IF_EQUAL, 0, len, *call as u32));
            program.extend(verdict);
        }
    }
    for (first, last) in runs(calls) {
        program.extend([instruction(IF_AT_LEAST, 1, 0, first), REFUSE]);
        program.extend([instruction(IF_AT_LEAST, 1, 0, last + 1), ALLOW]);
    }
    program.push(MISSING);
    program
}

/// What decides about a call that is not always allowed; empty for one that is.
fn conditional(when: When) -> Vec<sock_filter> {
    let first = instruction(LOAD, 0, 0, FIRST_AT);
    match when {
        When::Always => Vec::new(),
        When::FirstLacks(bits) => vec![first, instruction(IF_ANY_BIT, 1, 0, bits), ALLOW, REFUSE],
        When::FirstIsNot(value) => vec![first, instruction(IF_EQUAL, 1, 0, value), ALLOW, REFUSE],
        When::FirstIsOneOf(values) => {
            let tests = values.iter().flat_map(|value| [instruction(IF_EQUAL, 0, 1, *value), ALLOW]);
            [first].into_iter().chain(tests).chain([REFUSE]).collect()
        }
        When::Missing => vec![MISSING],
    }
}

/// Numbers that are always allowed, as ranges with both ends included.
fn runs(calls: &[(c_long, When)]) -> Vec<(u32, u32)> {
    let always = calls.iter().filter(|(_, when)| *when == When::Always);
    let mut numbers: Vec<u32> = always.map(|(call, _)| *call as u32).collect();
    numbers.sort_unstable();
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if number <= *last + 1 => *last = number,
            _ => runs.push((number, number)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do about the system call `number` with `first` as its first argument
    /// (Documentation/networking/filter.rst).
    fn verdict(program: &[sock_filter], architecture: u32, number: u32, first: u32) -> u32 {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let holds = match code {
                LOAD => {
                    loaded = match k {
                        NUMBER_AT => number,
                        ARCHITECTURE_AT => architecture,
                        _ => first,
                    };
                    continue;
                }
                IF_EQUAL => loaded == k,
                IF_AT_LEAST => loaded >= k,
                IF_ANY_BIT => loaded & k != 0,
                _ => return k,
            };
            at += usize::from(if holds { jt } else { jf });
        }
    }

    fn here(program: &[sock_filter], number: u32, first: u32) -> u32 {
        verdict(program, ARCHITECTURE.unwrap_or_default(), number, first)
    }

    #[test]
    fn only_forbidden_calls_of_the_own_kind_are_the_end() {
        let program = forbidding(&[7, 300]);
        for number in [7, 300, X32_NUMBERS, X32_NUMBERS + 1] {
            assert_eq!(here(&program, number, 0), libc::SECCOMP_RET_KILL_PROCESS, "{number}");
        }
        for number in [0, 6, 8, 299, 301] {
            assert_eq!(here(&program, number, 0), libc::SECCOMP_RET_ALLOW, "{number}");
        }
        if ARCHITECTURE.is_some() {
            assert_eq!(verdict(&program, 1, 0, 0), libc::SECCOMP_RET_KILL_PROCESS);
        }
    }

    #[test]
    fn only_listed_calls_are_allowed() {
        let always = [3, 1, 2, 9, 2].map(|number| (number, When::Always));
        let program = allowing(&always);
        for number in [1, 2, 3, 9] {
            assert_eq!(here(&program, number, 0), ALLOW.k, "{number}");
        }
        for number in [0, 4, 8] {
            assert_eq!(here(&program, number, 0), REFUSE.k, "{number}");
        }
        for number in [10, X32_NUMBERS + 1] {
            assert_eq!(here(&program, number, 0), MISSING.k, "{number}");
        }
        if ARCHITECTURE.is_some() {
            assert_eq!(verdict(&program, 1, 1, 0), KILL.k);
        }
    }

    #[test]
    fn first_argument_decides_where_a_rule_says_so() {
        let calls = [
            (5, When::FirstLacks(0b110)),
            (6, When::FirstIsNot(40)),
            (7, When::FirstIsOneOf(&[0, 8])),
            (8, When::Missing),
            (9, When::Always),
            (5, When::Always),
        ];
        let program = allowing(&calls);
        for (number, first, expected) in [
            (5, 0b1001, ALLOW),
            (5, 0b0100, REFUSE),
            (6, 41, ALLOW),
            (6, 40, REFUSE),
            (7, 8, ALLOW),
            (7, 9, REFUSE),
            (8, 0, MISSING),
            (9, 0b110, ALLOW),
        ] {
            assert_eq!(here(&program, number, first), expected.k, "{number} {first}");
        }
    }
}
