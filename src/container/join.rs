//! Namespaces that exist already: found, checked, and visited by a short-lived child that makes the guest's link there.
//!
//! Entering a network namespace takes capabilities in the user namespace that owns it; its maker has them as soon as
//! he is inside. Which one it is the kernel tells, so nobody has to name it.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Pid, Uid};

use super::channel::{Channel, Report};
use super::userns;
use crate::config::{LinkSpec, Network};
use crate::error::{Context, Error, Result, exit};
use crate::sys::factory::{self, Factory};
use crate::sys::link::{self, LinkFd};
use crate::sys::process::Child;
use crate::sys::{namespace, process};

const OWN_USER: &str = "/proc/self/ns/user";
const OWN_NET: &str = "/proc/self/ns/net";

/// A network namespace, and the user namespace from which it can be entered.
#[derive(Debug)]
pub struct Namespaces {
    net: OwnedFd,
    /// For messages.
    path: PathBuf,
    /// `None` if it is our own.
    user: Option<OwnedFd>,
}

impl Namespaces {
    /// Those of the process `pid`, and a descriptor that is readable once it has ended. `userns` takes the place of the
    /// owning user namespace.
    pub fn of_process(pid: i32, userns: Option<&Path>) -> Result<(Self, OwnedFd)> {
        let watch = watch_process(pid)?;
        let net = PathBuf::from(format!("/proc/{pid}/ns/net"));
        let denied = File::open(&net).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
        let namespaces = Self::at(&net, userns);
        // Only while it lives is the path that of this very process.
        if has_ended(&watch) {
            return Err(Error::new("cannot attach to process", pid, "it has ended"));
        }
        let explained = |error| if denied { of_other_user(error, pid) } else { error };
        Ok((namespaces.map_err(explained)?, watch))
    }

    /// The network namespace behind the descriptor `net`, which messages call `name`.
    pub(super) fn of_descriptor(net: OwnedFd, name: PathBuf) -> Result<Self> {
        match namespace::kind(&net) {
            Ok(CloneFlags::CLONE_NEWNET) => Self::new(net, &name, None),
            _ => Err(Error::new("cannot use", name.display(), "it has no network namespace")),
        }
    }

    /// The network namespace at `path`.
    pub fn at(path: &Path, userns: Option<&Path>) -> Result<Self> {
        Self::new(open(path, CloneFlags::CLONE_NEWNET, "network namespace")?, path, userns)
    }

    fn new(net: OwnedFd, path: &Path, userns: Option<&Path>) -> Result<Self> {
        let own = File::open(OWN_NET).context("cannot open", OWN_NET)?;
        if namespace::is_same(&net, &own).context("cannot look at", path.display())? {
            return Err(Error::new("cannot attach to", path.display(), "it is rnet's own network namespace")
                .hint("the target needs one of its own: unshare --user --map-root-user --net COMMAND"));
        }
        let user = match userns {
            Some(path) => Some(open(path, CloneFlags::CLONE_NEWUSER, "user namespace")?),
            // Without it the network namespace refuses, and is explained then.
            None => namespace::owner(&net).ok(),
        };
        let own = File::open(OWN_USER).context("cannot open", OWN_USER)?;
        let is_own = |user: &OwnedFd| namespace::is_same(user, &own).unwrap_or(false);
        Ok(Self { net, path: path.to_owned(), user: user.filter(|user| !is_own(user)) })
    }

    /// Enters both, for good.
    fn enter(&self) -> Result<()> {
        if let Some(user) = &self.user {
            setns(user, CloneFlags::CLONE_NEWUSER)
                .map_err(|errno| self.refused("the user namespace of", errno))?;
        }
        setns(&self.net, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| self.refused("the network namespace", errno))
    }

    /// Forks a child into these and into new ones of every other kind.
    pub(super) fn spawn_inside(&self, kept: Channel, child: impl FnOnce(Channel) -> u8) -> Result<Child> {
        if self.user.is_none() {
            return Err(Error::new("cannot join", self.path.display(), "its user namespace is rnet's own")
                .hint("a container shares the network of another container"));
        }
        let namespaces = userns::NAMESPACES - CloneFlags::CLONE_NEWUSER - CloneFlags::CLONE_NEWNET;
        spawn_through(|| self.enter().map(|()| namespaces), kept, child)
    }

    fn refused(&self, what: &str, errno: Errno) -> Error {
        let target = format!("{what} {}", self.path.display());
        let error = Error::new("cannot enter", target, io::Error::from(errno));
        let own = File::open(OWN_USER).ok().map(OwnedFd::from);
        let owner = self.user.as_ref().or(own.as_ref()).and_then(|user| namespace::owner_uid(user).ok());
        match (errno, namespace::owner(&self.net), owner) {
            (Errno::EPERM, Err(Errno::EPERM), _) => error.hint(
                "it belongs to a user namespace outside of this one: run rnet where that was made",
            ),
            (Errno::EPERM, Ok(_), Some(owner)) if owner != Uid::effective() => error.hint(format!(
                "its user namespace belongs to the user with uid {owner}, and rnet runs with uid {}: \
                 run rnet as that user",
                Uid::effective()
            )),
            (Errno::EPERM, ..) => error.hint(
                "rnet has no capabilities there: run it in the user namespace in which the target's was made, or name \
                 the one to enter with --userns",
            ),
            _ => error,
        }
    }
}

/// Forks a child where `enter` leads and into the new namespaces that it wants. A process between enters, as only inside
/// can a child be made that has rights there; the child is this process's own all the same.
pub(super) fn spawn_through(
    enter: impl FnOnce() -> Result<CloneFlags>,
    kept: Channel,
    child: impl FnOnce(Channel) -> u8,
) -> Result<Child> {
    const BETWEEN: &str = "the process that enters the namespaces";
    let (ours, theirs) = Channel::pair().context("cannot create", "socket pair")?;
    let between = process::fork(|| spawn_sibling(enter, &theirs, kept, child));
    let between = between.context("cannot start", BETWEEN)?;
    drop(theirs);
    let report = ours.receive().context("cannot hear from", BETWEEN)?;
    let _ = between.reap();
    match report {
        Some(Report::Child(child)) => Ok(child),
        Some(Report::Failed(error)) => Err(error),
        _ => Err(Error::new("cannot hear from", BETWEEN, "it died")),
    }
}

/// What the process between does.
fn spawn_sibling(
    enter: impl FnOnce() -> Result<CloneFlags>,
    parent: &Channel,
    kept: Channel,
    child: impl FnOnce(Channel) -> u8,
) -> u8 {
    let made = enter()
        .and_then(|namespaces| userns::explained(process::spawn_sibling(namespaces, kept, child)))
        .and_then(|child| parent.child(&child).context("cannot pass on", "the container's first process"));
    match made {
        Ok(()) => 0,
        Err(error) => {
            parent.failed(&error);
            exit::RNET_FAILED
        }
    }
}

/// A descriptor that is readable once the process `pid` has ended.
pub fn watch_process(pid: i32) -> Result<OwnedFd> {
    process::watch(Pid::from_raw(pid)).map_err(|errno| {
        let cause = match errno {
            Errno::ESRCH => "there is no such process".to_owned(),
            Errno::EINVAL => "that is a thread, not a process".to_owned(),
            errno => io::Error::from(errno).to_string(),
        };
        Error::new("cannot attach to process", pid, cause)
    })
}

/// Whether the process behind a descriptor of [`watch_process`] has ended.
pub(super) fn has_ended(watch: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Adds why the namespaces of a process may be out of reach.
fn of_other_user(error: Error, pid: i32) -> Error {
    let own = Uid::effective().as_raw();
    match fs::metadata(format!("/proc/{pid}")).map(|about| about.uid()) {
        Ok(owner) if owner != own => {
            error.hint(format!("process {pid} belongs to the user with uid {owner}: run rnet as that user"))
        }
        _ => {
            error.hint("it is in a user namespace that rnet has no rights over: run rnet where that was made")
        }
    }
}

fn open(path: &Path, kind: CloneFlags, name: &str) -> Result<OwnedFd> {
    let file = File::open(path).context("cannot open", format!("{name} {}", path.display()))?;
    match namespace::kind(&file) {
        Ok(found) if found == kind => Ok(file.into()),
        Err(errno) if !namespace::is_none(errno) => {
            Err(errno).context("cannot look at", format!("{name} {}", path.display()))
        }
        _ => Err(Error::new("cannot use", path.display(), format!("it is not a {name}"))),
    }
}

/// Makes and configures a link in `namespaces`, and brings it out. No thread may have been started before.
pub fn join(namespaces: &Namespaces, spec: &LinkSpec, network: &Network) -> Result<LinkFd> {
    let (ours, theirs) = Channel::pair().context("cannot create", "socket pair")?;
    let visit = || visit(&theirs, namespaces, spec, network);
    let child = process::fork(|| if visit().is_ok() { 0 } else { exit::RNET_FAILED })
        .context("cannot start", "the process that enters the namespace")?;
    drop(theirs);
    let link = receive(&ours);
    let _ = child.reap();
    link
}

/// The same with a child that stays, and becomes the socket factory, which does not stand yet.
pub fn join_with_factory(
    namespaces: &Namespaces,
    spec: &LinkSpec,
    network: &Network,
) -> Result<(LinkFd, Factory)> {
    let (ours, theirs) = Channel::pair().context("cannot create", "socket pair")?;
    let (_, factory) = factory::start(|| visit(&theirs, namespaces, spec, network))?;
    drop(theirs);
    receive(&ours).map(|link| (link, factory))
}

/// Has a short-lived child `look` at what is in `namespaces`; its error. No thread may have been started before.
pub fn inspect(namespaces: &Namespaces, look: impl FnOnce() -> Result<()>) -> Result<()> {
    const CHILD: &str = "the process that looks into the namespace";
    let (ours, theirs) = Channel::pair().context("cannot create", "socket pair")?;
    let report = || match namespaces.enter().and_then(|()| look()) {
        Ok(()) => u8::from(theirs.ready().is_err()),
        Err(error) => {
            theirs.failed(&error);
            exit::RNET_FAILED
        }
    };
    let child = process::fork(report).context("cannot start", CHILD)?;
    drop(theirs);
    let report = ours.receive().context("cannot hear from", CHILD)?;
    let _ = child.reap();
    match report {
        Some(Report::Ready) => Ok(()),
        Some(Report::Failed(error)) => Err(error),
        _ => Err(Error::new("cannot hear from", CHILD, "it died")),
    }
}

/// What the child does. It tells the other end of the channel how it ends, too.
fn visit(channel: &Channel, namespaces: &Namespaces, spec: &LinkSpec, network: &Network) -> Result<()> {
    let made = namespaces.enter().and_then(|()| link::create(spec, network));
    let sent = made.and_then(|link| channel.link(&link).context("cannot pass on", "link"));
    sent.inspect_err(|error| channel.failed(error))
}

fn receive(channel: &Channel) -> Result<LinkFd> {
    match channel.receive().context("cannot hear from", "the process that enters the namespace")? {
        Some(Report::Link(link)) => Ok(link),
        Some(Report::Failed(error)) => Err(error),
        _ => Err(Error::new("cannot make", "the guest's link", "the process that enters the namespace died")),
    }
}
