//! What a command is left with: capabilities, system calls, labels, limits. Given up for good, by the process that becomes it.
//!
//! [`prepare`] looks at the host, and [`Restriction::apply`] is the last thing before execve, in whichever process that
//! is: a container's first one, or one that joins it later. It needs no file but those of /proc.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::prctl::set_no_new_privs;
use nix::sys::resource::{self, setrlimit};
use nix::sys::utsname::uname;

use super::label::{self, Label};
use super::{calls, profile};
use crate::config::{Capabilities, Limit, Privileges, Resource, Seccomp};
use crate::error::{Context, Error, Result};
use crate::sys::privilege;
use crate::sys::seccomp::{self, Filter, MAX_INSTRUCTIONS, Program};

/// [`Privileges`], ready to be all that a process has.
#[derive(Debug)]
pub(crate) struct Restriction {
    limits: Vec<Limit>,
    no_new_privileges: bool,
    capabilities: Capabilities,
    filter: Option<Program>,
    labels: Vec<Label>,
}

/// Makes ready what `privileges` say. To be called where the host's files are, before any namespace is entered; what this
/// machine does not hold of it is warned of.
pub(crate) fn prepare(privileges: &Privileges) -> Result<Restriction> {
    let filter = filter(privileges)?.map(|filter| compile(&filter)).transpose()?;
    Ok(Restriction {
        limits: privileges.limits.clone(),
        no_new_privileges: privileges.no_new_privileges,
        capabilities: privileges.capabilities,
        filter,
        labels: label::settle(privileges, Path::new("/"))?,
    })
}

fn filter(privileges: &Privileges) -> Result<Option<Filter>> {
    let capabilities = privileges.capabilities;
    match &privileges.seccomp {
        Seccomp::Unconfined => Ok(None),
        Seccomp::Docker if !seccomp::is_known_machine() => {
            tracing::warn!("system calls are not filtered: there is no list for this kind of machine");
            Ok(None)
        }
        Seccomp::Docker => Ok(Some(calls::of_docker(capabilities))),
        Seccomp::Profile(path) => profile(path, capabilities).map(Some),
    }
}

fn profile(path: &Path, capabilities: Capabilities) -> Result<Filter> {
    const OPERATION: &str = "cannot use the seccomp profile";
    let mut text = Vec::new();
    let file = File::open(path).context(OPERATION, path.display())?;
    file.take(profile::MAX_BYTES + 1).read_to_end(&mut text).context(OPERATION, path.display())?;
    if text.len() as u64 > profile::MAX_BYTES {
        return Err(Error::new(OPERATION, path.display(), "it is longer than 1 MiB"));
    }
    let host = profile::Host { capabilities, kernel: kernel() };
    let filter = profile::parse(&text, host).map_err(|cause| Error::new(OPERATION, path.display(), cause))?;
    // Nobody could tell: reporting takes system calls, too.
    match filter.may_allow("execve") {
        true => Ok(filter),
        false => Err(Error::new(OPERATION, path.display(), "it lets no command start")
            .hint("a rule has to allow execve, and whatever else the command does")),
    }
}

/// The first two numbers of its release; one that cannot be read is the newest.
fn kernel() -> (u32, u32) {
    let name = uname().ok();
    let release = name.as_ref().and_then(|name| name.release().to_str());
    release.and_then(profile::release).unwrap_or((u32::MAX, 0))
}

fn compile(filter: &Filter) -> Result<Program> {
    filter.compile().map_err(|errno| {
        let cause = match errno {
            Errno::E2BIG => {
                format!("it comes to more than the {MAX_INSTRUCTIONS} instructions that the kernel takes")
            }
            Errno::ENOSYS => "the system calls of this kind of machine are not known".to_owned(),
            _ => std::io::Error::from(errno).to_string(),
        };
        Error::new("cannot make", "the filter of system calls", cause)
            .hint("another profile, or none: --security-opt seccomp=unconfined")
    })
}

impl Restriction {
    /// Leaves this process, which must have one thread, what it shall have, limits included. What comes after this is subject
    /// to the filter: execve at best.
    ///
    /// The process is the command's user by now, and has its namespace's capabilities still, as
    /// `identity::become_user` leaves them; execve takes them from whoever is not root.
    pub(crate) fn apply(&self) -> Result<()> {
        self.limits.iter().try_for_each(limit)?;
        // After no_new_privs many policies allow no transition.
        self.labels.iter().try_for_each(Label::apply)?;
        const CAPABILITIES: &str = "capabilities";
        if self.no_new_privileges {
            forbid_new_privileges()?;
        }
        let kept = self.capabilities.bits();
        privilege::bound_capabilities(kept).context("cannot give up", CAPABILITIES)?;
        // Without no_new_privs a filter takes a capability; otherwise it comes last, as what precedes is none of its business.
        if !self.no_new_privileges {
            self.filter_calls()?;
        }
        privilege::keep_capabilities(kept).context("cannot give up", CAPABILITIES)?;
        if self.no_new_privileges {
            self.filter_calls()?;
        }
        Ok(())
    }

    /// For what stays beside the command, such as its init, and has seen what the command shall not: it does no more than the
    /// command could, but keeps its capabilities, unused, so that the command cannot look into it.
    pub(crate) fn stand_beside(&self) -> Result<()> {
        forbid_new_privileges()?;
        privilege::bound_capabilities(self.capabilities.bits()).context("cannot give up", "capabilities")?;
        privilege::rest_capabilities().context("cannot put down", "capabilities")?;
        self.filter_calls()
    }

    fn filter_calls(&self) -> Result<()> {
        let installed = self.filter.as_ref().map_or(Ok(()), Program::install);
        installed.context("cannot install", "a filter of system calls").map_err(|error| {
            error.hint(
                "the kernel needs CONFIG_SECCOMP_FILTER; or go without: --security-opt seccomp=unconfined",
            )
        })
    }
}

fn forbid_new_privileges() -> Result<()> {
    set_no_new_privs().context("cannot set", "no_new_privs")
}

fn limit(limit: &Limit) -> Result<()> {
    setrlimit(of_kernel(limit.resource), limit.soft, limit.hard).map_err(|errno| refused(limit, errno))
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
