//! `rnet attach`, put together: a network for a namespace that others have made, and that ends with it.
//!
//! Front-ends that imitate other programs fill an [`Attach`] in their own way and call [`attach`] too.

mod bess;
mod bubblewrap;
mod slirp4netns;
mod vigil;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub use self::slirp4netns::slirp4netns;
use self::vigil::{Signals, Vigil, Watch};
use crate::config::{Attach, Network, Target};
use crate::container::{self, Door, Foreground, Namespaces};
use crate::control::Place;
use crate::error::{Context, Error, Result};
use crate::serve::{Alarm, FileLimit, Prepared, Serving, confine_process};
use crate::sys::factory::Factory;
use crate::sys::{link, memory, process};

/// Serves `config`'s target until it ends; the exit status, which is 0. With [`Lifecycle::detach`] it returns as soon
/// as that goes on in the background. No thread may have been started before. `seed` feeds the gateway's random
/// choices. `before_threads` is called when the link stands, as the last with one thread; what it returns does what
/// else must stand before the network counts as ready.
///
/// [`Lifecycle::detach`]: crate::config::Lifecycle::detach
pub fn attach<F>(config: &Attach, seed: u64, before_threads: impl FnOnce() -> Result<F>) -> Result<u8>
where
    F: FnOnce(&mut Serving) -> Result<()>,
{
    let Inherited { ready, exit, target } = Inherited::take(config)?;
    let work = |foreground: Option<Foreground>| {
        serve(config, seed, exit, |_, signals| {
            let guest = open(config, target, signals)?;
            let before_ready = before_threads()?;
            let tell = move |serving: &mut Serving| {
                before_ready(serving)?;
                serving.announce(config.log.level);
                announce(config, foreground, ready)
            };
            Ok((guest, tell))
        })
    };
    if config.lifecycle.detach {
        container::detach(|foreground| work(Some(foreground)))?;
        return Ok(0);
    }
    work(None)
}

/// As [`attach`] in the background, for a process whose namespaces are closed to everybody outside: the network starts
/// once somebody inside hands them over ([`container::hand_over`], with the network's name). On return that can be
/// done, and ports are listened on. What is wrong afterwards, the one inside is told.
pub fn await_guest(config: &Attach, seed: u64, process: i32) -> Result<()> {
    process::close_all_but(&[]);
    let watch = container::watch_process(process)?;
    let work = |foreground: Foreground| {
        serve(config, seed, None, |place, signals| {
            let place =
                place.ok_or_else(|| Error::new("cannot await", "the guest", "the network has no name"))?;
            let door = Door::open(&place.door())?;
            foreground.release()?;
            let join = |namespaces: &Namespaces| container::join(namespaces, &config.link, &config.network);
            let (link, visitor) = door.admit(&watch, signals.as_fd(), join)?;
            let guest = Guest { link, watch: Some(Watch::Process(watch)), factory: None };
            Ok((guest, |_: &mut Serving| visitor.ready()))
        })
    };
    container::detach(work)
}

/// Serves the guest that `open` brings, until it ends. `open` also says what to do when all stands.
fn serve<T>(
    config: &Attach,
    seed: u64,
    exit: Option<OwnedFd>,
    open: impl FnOnce(Option<&Place>, &Signals) -> Result<(Guest, T)>,
) -> Result<u8>
where
    T: FnOnce(&mut Serving) -> Result<()>,
{
    FileLimit::read()?.raise()?;
    let signals = Signals::take()?;
    let place = Place::of(config.name.as_deref(), number(&config.target), config.memo.as_deref())?;
    let prepared = Prepared::new(&config.network)?;
    let (Guest { link, watch, factory }, tell) = open(place.as_ref(), &signals)?;
    let vigil = Vigil { signals, exit, watch: watch.filter(|_| !config.lifecycle.outlives_target) };
    confine_process();
    let mut serving = prepared.serve(&config.network, &config.link, link, factory, seed, Alarm::AnyEnd)?;
    place.map_or(Ok(()), |place| serving.answer_at(place, None))?;
    tell(&mut serving)?;
    memory::unmap_used_code();
    let end = vigil.keep();
    if let Ok(end) = &end {
        tracing::info!(?end, "the network ends");
    }
    serving.stop().and(end.map(|_| 0))
}

/// Tells all who wait that the network is ready.
fn announce(config: &Attach, foreground: Option<Foreground>, ready: Option<OwnedFd>) -> Result<()> {
    if let Some(path) = &config.lifecycle.pid_file {
        write_pid(path)?;
    }
    if let Some(foreground) = foreground {
        foreground.release()?;
    }
    if let Some(ready) = ready {
        // Nobody may wait any more.
        let _ = fs::File::from(ready).write_all(b"1");
    }
    Ok(())
}

/// By what number a network without a name is called: its process's, or else rnet's.
fn number(target: &Target) -> u32 {
    match target {
        Target::Process { pid, .. } => pid.unsigned_abs(),
        Target::Path { .. } | Target::Bubblewrap { .. } | Target::Tap { .. } | Target::Bess { .. } => {
            std::process::id()
        }
    }
}

/// Who is served.
struct Guest {
    link: link::LinkFd,
    /// What shows the guest's end.
    watch: Option<Watch>,
    /// Makes sockets in the guest's namespace, if that is needed.
    factory: Option<Factory>,
}

fn open(config: &Attach, inherited: Option<OwnedFd>, signals: &Signals) -> Result<Guest> {
    let (namespaces, watch) = match (&config.target, inherited) {
        (Target::Tap { .. }, Some(tap)) => {
            return Ok(Guest { link: link::adopt(tap)?, watch: None, factory: None });
        }
        (Target::Bubblewrap { .. }, Some(info)) => {
            let (namespaces, process) = Namespaces::of_process(bubblewrap::child(info, signals)?, None)?;
            (namespaces, Some(Watch::Process(process)))
        }
        (Target::Process { pid, userns }, _) => {
            let (namespaces, process) = Namespaces::of_process(*pid, userns.as_deref())?;
            (namespaces, Some(Watch::Process(process)))
        }
        (Target::Path { netns, userns }, _) => {
            let watch = Watch::path(netns)?;
            (Namespaces::at(netns, userns.as_deref())?, watch)
        }
        (Target::Bess { path }, _) => {
            return Ok(Guest { link: bess::accept(path, signals)?, watch: None, factory: None });
        }
        (Target::Tap { fd } | Target::Bubblewrap { info_fd: fd }, None) => return Err(not_open(*fd)),
    };
    if !config.network.wants_socket_factory() {
        let link = container::join(&namespaces, &config.link, &config.network)?;
        return Ok(Guest { link, watch, factory: None });
    }
    let (link, factory) = container::join_with_factory(&namespaces, &config.link, &config.network)?;
    Ok(Guest { link, watch, factory: await_factory(factory, &config.network)? })
}

/// What makes sockets in the guest's namespace, once it stands. Published ports work without.
fn await_factory(factory: Factory, network: &Network) -> Result<Option<Factory>> {
    match factory.await_ready() {
        Err(error) if network.loopback_forwards.is_empty() => {
            let lost = match network.automatic.any() {
                true => "published ports are not spliced, and none follow who listens",
                false => "published ports are not spliced",
            };
            tracing::warn!("{error}; {lost}");
            Ok(None)
        }
        stands => stands.map(|()| Some(factory)),
    }
}

/// Descriptors that came from the caller.
#[derive(Debug)]
struct Inherited {
    ready: Option<OwnedFd>,
    exit: Option<OwnedFd>,
    target: Option<OwnedFd>,
}

impl Inherited {
    /// Takes them over, before anything else is opened, and closes what else the caller has left open.
    fn take(config: &Attach) -> Result<Self> {
        let take = |fd: RawFd| process::inherited(fd).map_err(|_| not_open(fd));
        let target = match config.target {
            Target::Tap { fd } | Target::Bubblewrap { info_fd: fd } => Some(fd),
            Target::Process { .. } | Target::Path { .. } | Target::Bess { .. } => None,
        };
        let fds = [config.lifecycle.ready_fd, config.lifecycle.exit_fd, target];
        let mut seen: Vec<RawFd> = fds.into_iter().flatten().collect();
        seen.sort_unstable();
        if let Some(twice) = seen.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::new("cannot use descriptor", twice[0], "it is given twice"));
        }
        seen.extend(named_in_paths(&config.target));
        process::close_all_but(&seen);
        let [ready, exit, target] = fds.map(|fd| fd.map(take).transpose());
        Ok(Self { ready: ready?, exit: exit?, target: target? })
    }
}

/// Descriptors that the target's paths name, such as `/proc/self/fd/7`.
fn named_in_paths(target: &Target) -> impl Iterator<Item = RawFd> {
    let (netns, userns) = match target {
        Target::Process { userns, .. } => (None, userns.as_ref()),
        Target::Path { netns, userns } => (Some(netns), userns.as_ref()),
        Target::Bubblewrap { .. } | Target::Tap { .. } | Target::Bess { .. } => (None, None),
    };
    let number = |path: &PathBuf| {
        let below = ["/proc/self/fd", "/proc/thread-self/fd", "/dev/fd"];
        let number = below.into_iter().find_map(|directory| path.strip_prefix(directory).ok())?;
        number.to_str()?.parse().ok()
    };
    netns.into_iter().chain(userns).filter_map(number)
}

/// Makes way for a new socket at `path`: one that is there is removed. Anything else stays, and is an error.
fn make_way(path: &Path) -> Result<()> {
    const OPERATION: &str = "cannot make a socket at";
    match fs::symlink_metadata(path) {
        Ok(about) if about.file_type().is_socket() => {
            fs::remove_file(path).context(OPERATION, path.display())
        }
        Ok(_) => Err(Error::new(OPERATION, path.display(), "there is a file, and it is no socket")
            .hint("name another path, or remove it")),
        // Binding tells why.
        Err(_) => Ok(()),
    }
}

fn not_open(fd: RawFd) -> Error {
    Error::new("cannot use descriptor", fd, "it is not open")
        .hint(format!("a shell opens it with a redirection, such as {fd}>FILE or {fd}<FILE"))
}

/// Writes this process's id to the file at `path`.
pub(crate) fn write_pid(path: &Path) -> Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path);
    file.and_then(|mut file| writeln!(file, "{}", std::process::id()))
        .context("cannot write", format!("the pid file {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    #[test]
    fn only_a_socket_makes_way() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        make_way(&at("nothing")).expect("it is free");
        drop(UnixListener::bind(at("socket")).expect("a fresh directory"));
        fs::write(at("file"), "text").expect("a fresh directory");
        symlink("socket", at("link")).expect("a fresh directory");
        for name in ["file", "link"] {
            let error = make_way(&at(name)).expect_err(name).to_string();
            assert!(error.contains("no socket") && error.contains(name), "{error}");
        }
        assert_eq!(fs::read_to_string(at("file")).expect("untouched"), "text");
        make_way(&at("socket")).expect("a socket");
        assert!(!at("socket").exists());
    }
}
