//! Capabilities that a process gives away for good.

#![allow(unsafe_code)]

use libc::{c_int, c_ulong};
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

/// Of what is executed from now on nothing gets another capability than those of `kept`, one bit for each at its number,
/// be it root's or have a file them. Needs CAP_SETPCAP, or has no effect.
pub(crate) fn bound_capabilities(kept: u64) -> nix::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as c_ulong)?;
    for capability in (0..CAPABILITIES).filter(|capability| kept & (1 << capability) == 0) {
        match prctl(libc::PR_CAPBSET_DROP, c_ulong::from(capability)) {
            // The kernel has no such capability; or this process may not, and has none to lose.
            Err(Errno::EINVAL | Errno::EPERM) => {}
            done => done?,
        }
    }
    Ok(())
}

/// Gives up every capability but those of `kept` of this thread, which must be the only one. Of them those stay that were
/// there.
pub(crate) fn keep_capabilities(kept: u64) -> nix::Result<()> {
    set(kept & permitted()?)
}

/// Puts every capability of this thread, which must be the only one, out of effect. As it might take them back, none that has
/// less may trace it or look into it (ptrace(2), "Ptrace access mode checking").
pub(crate) fn rest_capabilities() -> nix::Result<()> {
    set_both(0, permitted()?)
}

/// Gives up every capability of this thread, which must be the only one.
pub(crate) fn drop_all() -> nix::Result<()> {
    set(0)
}

/// Brings all permitted capabilities of this thread into effect, out of which a change from root's id has put them.
pub(crate) fn raise_permitted() -> nix::Result<()> {
    set(permitted()?)
}

/// The permitted capabilities.
fn permitted() -> nix::Result<u64> {
    let header = Header { version: VERSION_3, pid: 0 };
    let mut sets = [Sets::default(); 2];
    // SAFETY: the header names the version with two sets, which is how many there is room for.
    let done = unsafe { libc::syscall(libc::SYS_capget, &raw const header, sets.as_mut_ptr()) };
    Errno::result(done).map(|_| u64::from(sets[0].permitted) | u64::from(sets[1].permitted) << 32)
}

fn set(bits: u64) -> nix::Result<()> {
    set_both(bits, bits)
}

fn set_both(effective: u64, permitted: u64) -> nix::Result<()> {
    let header = Header { version: VERSION_3, pid: 0 };
    let half = |shift: u32| Sets {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: 0,
    };
    let sets = [half(0), half(32)];
    // SAFETY: the header names the version with two sets, and both are there.
    let done = unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) };
    Errno::result(done).map(drop)
}

fn prctl(option: c_int, argument: c_ulong) -> nix::Result<()> {
    let none: c_ulong = 0;
    // SAFETY: the options used here take numbers only.
    Errno::result(unsafe { libc::prctl(option, argument, none, none, none) }).map(drop)
}
