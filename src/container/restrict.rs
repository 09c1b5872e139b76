//! What the command is left with: capabilities, system calls, limits. Given up for good, by the process that becomes it.

use nix::errno::Errno;
use nix::sys::prctl::set_no_new_privs;
use nix::sys::resource::{self, setrlimit};

use super::calls;
use crate::config::{Limit, Privileges, Resource};
use crate::error::{Context, Error, Result};
use crate::sys::{privilege, seccomp};

/// What `privileges` promise and this machine does not hold.
pub(super) fn shortfall(privileges: &Privileges) -> Option<&'static str> {
    let missing = privileges.filtered && !seccomp::is_known_machine();
    missing.then_some("system calls are not filtered: there is no list for this kind of machine")
}

/// Gives up what the command, and an init before it, shall not have.
///
/// The filter comes before the capabilities go: installing it takes one of them unless no_new_privs is set.
pub(super) fn give_up(privileges: &Privileges) -> Result<()> {
    if privileges.no_new_privileges {
        set_no_new_privs().context("cannot set", "no_new_privs")?;
    }
    if privileges.filtered && seccomp::is_known_machine() {
        filter(privileges)?;
    }
    privilege::keep_capabilities(privileges.capabilities.bits()).context("cannot give up", "capabilities")
}

fn filter(privileges: &Privileges) -> Result<()> {
    seccomp::allow_only(&calls::allowed(privileges.capabilities))
        .context("cannot install", "a seccomp filter")
        .map_err(|error| {
            error.hint(
                "the kernel needs CONFIG_SECCOMP_FILTER; or go without: --security-opt seccomp=unconfined",
            )
        })
}

/// Sets `limits` for this process and what it starts.
pub(super) fn limit(limits: &[Limit]) -> Result<()> {
    limits.iter().try_for_each(|limit| {
        setrlimit(of_kernel(limit.resource), limit.soft, limit.hard).map_err(|errno| refused(limit, errno))
    })
}

fn refused(limit: &Limit, errno: Errno) -> Error {
    let name = limit.resource.name();
    let error = Error::new("cannot set limit", name, std::io::Error::from(errno));
    match errno {
        Errno::EPERM => error.hint(format!(
            "nobody but the host's root raises a hard limit: `prlimit` shows yours, and SOFT:HARD of --ulimit {name} \
             may be up to that"
        )),
        _ => error,
    }
}

fn of_kernel(resource: Resource) -> resource::Resource {
    match resource {
        Resource::AddressSpace => resource::Resource::RLIMIT_AS,
        Resource::Core => resource::Resource::RLIMIT_CORE,
        Resource::Cpu => resource::Resource::RLIMIT_CPU,
        Resource::Data => resource::Resource::RLIMIT_DATA,
        Resource::FileSize => resource::Resource::RLIMIT_FSIZE,
        Resource::Locks => resource::Resource::RLIMIT_LOCKS,
        Resource::LockedMemory => resource::Resource::RLIMIT_MEMLOCK,
        Resource::MessageQueues => resource::Resource::RLIMIT_MSGQUEUE,
        Resource::Nice => resource::Resource::RLIMIT_NICE,
        Resource::OpenFiles => resource::Resource::RLIMIT_NOFILE,
        Resource::Processes => resource::Resource::RLIMIT_NPROC,
        Resource::Resident => resource::Resource::RLIMIT_RSS,
        Resource::RealtimePriority => resource::Resource::RLIMIT_RTPRIO,
        Resource::RealtimeTime => resource::Resource::RLIMIT_RTTIME,
        Resource::PendingSignals => resource::Resource::RLIMIT_SIGPENDING,
        Resource::Stack => resource::Resource::RLIMIT_STACK,
    }
}
