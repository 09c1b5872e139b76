//! Privileges that a process gives away for good: capabilities, and system calls.

#![allow(unsafe_code)]

use libc::{c_int, c_long, c_ulong, sock_filter, sock_fprog};
use nix::errno::Errno;

/// Binding to ports below 1024 (capabilities(7)).
pub(crate) const CAP_NET_BIND_SERVICE: u32 = 10;
/// Capabilities that a kernel may have: the numbers end before this one.
const CAPABILITIES: u32 = 64;
/// `_LINUX_CAPABILITY_VERSION_3`, the one with 64 bits.
const VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Gives up every capability but `kept` of this thread, which must be the only one; `kept` stays only if it was there.
pub(crate) fn keep_capability(kept: u32) -> nix::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as c_ulong)?;
    for capability in (0..CAPABILITIES).filter(|capability| *capability != kept) {
        match prctl(libc::PR_CAPBSET_DROP, c_ulong::from(capability)) {
            // The kernel has no such capability; or this process may not, and has none to lose.
            Err(Errno::EINVAL | Errno::EPERM) => {}
            done => done?,
        }
    }
    let bit = (1 << kept) & permitted()?;
    set(bit)
}

/// Gives up every capability of this thread, which must be the only one.
pub(crate) fn drop_all() -> nix::Result<()> {
    set(0)
}

/// Brings all permitted capabilities of this thread into effect, out of which a change from root's id has put them.
pub(crate) fn raise_permitted() -> nix::Result<()> {
    set(permitted()?)
}

/// The lower half of the permitted capabilities.
fn permitted() -> nix::Result<u32> {
    let header = Header { version: VERSION_3, pid: 0 };
    let mut sets = [Sets::default(); 2];
    // SAFETY: the header names the version with two sets, which is how many there is room for.
    let done = unsafe { libc::syscall(libc::SYS_capget, &raw const header, sets.as_mut_ptr()) };
    Errno::result(done).map(|_| sets[0].permitted)
}

fn set(bits: u32) -> nix::Result<()> {
    let header = Header { version: VERSION_3, pid: 0 };
    let sets = [Sets { effective: bits, permitted: bits, inheritable: 0 }, Sets::default()];
    // SAFETY: the header names the version with two sets, and both are there.
    let done = unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) };
    Errno::result(done).map(drop)
}

fn prctl(option: c_int, argument: c_ulong) -> nix::Result<()> {
    let none: c_ulong = 0;
    // SAFETY: the options used here take numbers only.
    Errno::result(unsafe { libc::prctl(option, argument, none, none, none) }).map(drop)
}

/// A system call that fails, or does for some arguments. Unlike one that ends the process, a library may try it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refusal {
    /// `SYS_*`.
    pub(crate) call: c_long,
    /// When.
    pub(crate) when: When,
    /// What the caller gets.
    pub(crate) errno: Errno,
}

/// By the lower 32 bits of the first argument.
#[derive(Clone, Copy, Debug)]
pub(crate) enum When {
    /// Whatever it is.
    Always,
    /// If it is this.
    Is(u32),
    /// If it has any of these bits.
    HasAny(u32),
}

/// Of `struct seccomp_data` (seccomp(2)): where the number of the system call is, the architecture, and the lower half
/// of the first argument.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const ARGUMENT_AT: u32 = if cfg!(target_endian = "little") { 16 } else { 20 };
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
const IF_ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const KILL: sock_filter = instruction(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS);

const fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// From now on each of `calls` (`SYS_*`) ends this process, and what `refusals` say fails, in threads started later
/// too. Needs PR_SET_NO_NEW_PRIVS.
pub(crate) fn forbid_calls(calls: &[c_long], refusals: &[Refusal]) -> nix::Result<()> {
    let mut program = forbidding(calls, refusals);
    let len = u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
    let program = sock_fprog { len, filter: program.as_mut_ptr() };
    // SAFETY: the program is as long as it says and outlives the call, which copies it.
    let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    Errno::result(done).map(drop)
}

fn forbidding(calls: &[c_long], refusals: &[Refusal]) -> Vec<sock_filter> {
    let mut program = Vec::new();
    if let Some(architecture) = ARCHITECTURE {
        program.extend([
            instruction(LOAD, 0, 0, ARCHITECTURE_AT),
            instruction(IF_EQUAL, 1, 0, architecture),
            KILL,
        ]);
    }
    program.extend([instruction(LOAD, 0, 0, NUMBER_AT), instruction(IF_AT_LEAST, 0, 1, X32_NUMBERS), KILL]);
    for call in calls {
        program.extend([instruction(IF_EQUAL, 0, 1, *call as u32), KILL]);
    }
    program.extend(refusals.iter().flat_map(refusing));
    program.push(instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    program
}

/// Begins and ends with the number of the system call loaded.
fn refusing(refusal: &Refusal) -> Vec<sock_filter> {
    let errno = refusal.errno as u32 & libc::SECCOMP_RET_DATA;
    let fail = instruction(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno);
    let body = match refusal.when {
        When::Always => vec![fail],
        When::Is(value) => looking_at_the_argument(instruction(IF_EQUAL, 0, 1, value), fail),
        When::HasAny(bits) => looking_at_the_argument(instruction(IF_ANY_BIT, 0, 1, bits), fail),
    };
    // Of at most four.
    let unless = instruction(IF_EQUAL, 0, body.len() as u8, refusal.call as u32);
    [vec![unless], body].concat()
}

fn looking_at_the_argument(test: sock_filter, fail: sock_filter) -> Vec<sock_filter> {
    vec![instruction(LOAD, 0, 0, ARGUMENT_AT), test, fail, instruction(LOAD, 0, 0, NUMBER_AT)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do about the system call `number` (Documentation/networking/filter.rst).
    fn verdict(program: &[sock_filter], architecture: u32, number: u32, argument: u32) -> u32 {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            match code {
                LOAD if k == NUMBER_AT => loaded = number,
                LOAD => loaded = if k == ARGUMENT_AT { argument } else { architecture },
                IF_ANY_BIT => at += usize::from(if loaded & k != 0 { jt } else { jf }),
                IF_EQUAL => at += usize::from(if loaded == k { jt } else { jf }),
                IF_AT_LEAST => at += usize::from(if loaded >= k { jt } else { jf }),
                _ => return k,
            }
        }
    }

    #[test]
    fn only_forbidden_calls_of_the_own_kind_are_the_end() {
        let program = forbidding(&[7, 300], &[]);
        let of = |number| verdict(&program, ARCHITECTURE.unwrap_or_default(), number, 0);
        for number in [7, 300, X32_NUMBERS, X32_NUMBERS + 1] {
            assert_eq!(of(number), libc::SECCOMP_RET_KILL_PROCESS, "{number}");
        }
        for number in [0, 6, 8, 299, 301] {
            assert_eq!(of(number), libc::SECCOMP_RET_ALLOW, "{number}");
        }
        if ARCHITECTURE.is_some() {
            assert_eq!(verdict(&program, 1, 0, 0), libc::SECCOMP_RET_KILL_PROCESS);
        }
    }

    #[test]
    fn refusals_look_at_the_first_argument() {
        let refusal = |call, when| Refusal { call, when, errno: Errno::EACCES };
        let program = forbidding(
            &[7],
            &[refusal(20, When::Is(1)), refusal(21, When::Always), refusal(22, When::HasAny(0b110))],
        );
        for (number, argument, refused) in [
            (20, 1, true),
            (20, 2, false),
            (20, 22, false),
            (21, 0, true),
            (21, 9, true),
            (22, 0b1001, false),
            (22, 0b1010, true),
            (23, 1, false),
        ] {
            let expected = if refused {
                libc::SECCOMP_RET_ERRNO | Errno::EACCES as u32
            } else {
                libc::SECCOMP_RET_ALLOW
            };
            let found = verdict(&program, ARCHITECTURE.unwrap_or_default(), number, argument);
            assert_eq!(found, expected, "{number} {argument}");
        }
    }
}
