//! Where the control sockets are: `$XDG_RUNTIME_DIR/rnet/NAME/control`.
//!
//! Without that variable it is `/run/user/UID/rnet/NAME/control`, and without that directory
//! `/tmp/rnet-UID/NAME/control`. The directory of all networks must be ours alone. What a network that was killed has
//! left is removed by the next one that starts. A network may have a further socket, at a path that somebody has
//! chosen: [`Socket`].

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect as connect_to, getsockopt, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::{Pid, Uid};

use crate::config::is_network_name;
use crate::error::{Context, Error, Result};
use crate::sys::process;

/// Name of the socket in a network's directory.
const SOCKET: &str = "control";
/// Where one who is inside of closed namespaces comes in.
const DOOR: &str = "door";
/// For whom the network was made: only he ends it by its name.
const MEMO: &str = "memo";
/// Longest memo, in bytes: several times the longest path, which may be a part of it.
const MAX_MEMO_BYTES: u64 = 64 * 1024;
/// What says that a directory is a container's ([`crate::state`]), and then also stays when nobody listens there.
pub(crate) const RECORD: &str = "container.json";
/// Directory of the gateways of networks with names; nothing else is called so.
const NETWORKS: &str = ".networks";
/// Held while directories are made and removed.
const LOCK: &str = ".lock";
/// Left-over directories that one start removes at most.
const MAX_SWEPT: usize = 256;
/// How long a network may take to end before it is ended by force, and that before it counts as failed.
const ENDING_MS: u16 = 3000;
/// How long one waits to be let in at a control socket.
const REACHING_S: i64 = 5;

/// A running network's directory and the socket in it; both go when this is dropped.
#[derive(Debug)]
pub struct Place {
    directory: PathBuf,
    listener: UnixListener,
}

impl Place {
    /// Makes the place of the network `name`, which no other may have. `memo` is found by [`memos`] and asked for by
    /// [`end`].
    pub fn new(name: &str, memo: Option<&str>) -> Result<Self> {
        Self::below(&base()?, name, memo)
    }

    /// The place of the gateway of the network with the name `name`, which only one may have. Containers of that name are
    /// elsewhere.
    pub(crate) fn of_network(name: &str) -> Result<Self> {
        let base = base()?;
        make_private(&base)?;
        Self::below(&base.join(NETWORKS), name, None)
    }

    fn below(base: &Path, name: &str, memo: Option<&str>) -> Result<Self> {
        make_private(base)?;
        let _lock = lock(base, FlockArg::LockExclusive)?;
        sweep(base);
        let directory = base.join(name);
        match DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(taken(name, &directory));
            }
            made => made.context("cannot make", directory.display())?,
        }
        Self::listen(directory, memo)
    }

    /// Takes the place of a container again that has one, as its directory with a record is still there.
    pub fn again(name: &str) -> Result<Self> {
        let base = base()?;
        let _lock = lock(&base, FlockArg::LockExclusive)?;
        let directory = base.join(name);
        let socket = directory.join(SOCKET);
        match fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).context("cannot remove", socket.display())
            }
            _ => Self::listen(directory, None),
        }
    }

    fn listen(directory: PathBuf, memo: Option<&str>) -> Result<Self> {
        let socket = directory.join(SOCKET);
        // Nobody who reaches the network finds it without its memo.
        let listener = memo
            .map_or(Ok(()), |memo| remember(&directory, memo))
            .and_then(|()| UnixListener::bind(&socket).context("cannot listen on", socket.display()))
            .inspect_err(|_| remove(&directory))?;
        Ok(Self { directory, listener })
    }

    /// The place of the network `given`, or else of one that goes by a `number` and can do without a place.
    pub fn of(given: Option<&str>, number: u32, memo: Option<&str>) -> Result<Option<Self>> {
        match given {
            Some(name) => Self::new(name, memo).map(Some),
            None => Ok(Self::new(&number.to_string(), memo)
                .inspect_err(|error| tracing::info!(%error, "nobody can speak to this network"))
                .ok()),
        }
    }

    /// The directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// What the network is called.
    pub(crate) fn name(&self) -> String {
        self.directory.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Where [`crate::container::hand_over`] comes in.
    pub fn door(&self) -> PathBuf {
        self.directory.join(DOOR)
    }

    /// The listening socket.
    pub(crate) fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Whoever holds the lock may be stopped; to end does not wait for that.
        let _lock = self.directory.parent().map(|base| lock(base, FlockArg::LockExclusiveNonblock));
        remove(&self.directory);
    }
}

/// A control socket at a path that somebody has chosen; it goes when this is dropped.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    /// Listens at `path`. A socket there that nobody answers at gives way; whatever else is there stays, and is an
    /// error.
    pub fn at(path: &Path) -> Result<Self> {
        // A file that is no socket refuses connections, too.
        let is_socket = fs::symlink_metadata(path).is_ok_and(|about| about.file_type().is_socket());
        if is_socket && matches!(knock(path), Err(Errno::ECONNREFUSED)) {
            // If it cannot be removed, binding tells why.
            let _ = fs::remove_file(path);
        }
        let listener = UnixListener::bind(path).context("cannot listen on", path.display())?;
        Ok(Self { path: path.to_owned(), listener })
    }

    /// The listening socket.
    pub(super) fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The door of the network `name`, whether or not there is one.
pub fn door(name: &str) -> Result<PathBuf> {
    Ok(base()?.join(name).join(DOOR))
}

/// Whether a new network may have the name: nobody has it, or one that was killed.
pub fn is_free(name: &str) -> Result<bool> {
    let directory = base()?.join(name);
    Ok(!directory.exists() || (!is_a_containers(&directory) && is_left_over(&directory)))
}

/// The names of this user's networks that have a memo, those that were killed among them, with what it says.
pub fn memos() -> Result<Vec<(String, String)>> {
    let base = base()?;
    let entries = match fs::read_dir(&base) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context("cannot read", base.display())?,
    };
    let memo = |entry: io::Result<fs::DirEntry>| {
        let entry = entry.ok()?;
        let text = memo_in(&entry.path())?;
        Some((entry.file_name().into_string().ok()?, text))
    };
    Ok(entries.filter_map(memo).collect())
}

/// The directories of this user's containers, those that have ended among them, in no order.
pub(crate) fn directories() -> Result<Vec<PathBuf>> {
    let base = base()?;
    let entries = match fs::read_dir(&base) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context("cannot read", base.display())?,
    };
    Ok(entries.flatten().map(|entry| entry.path()).filter(|path| is_a_containers(path)).collect())
}

/// The directory of the container `name`; `None` if there is none.
pub(crate) fn directory(name: &str) -> Result<Option<PathBuf>> {
    if !is_network_name(name) {
        return Ok(None);
    }
    Ok(Some(base()?.join(name)).filter(|path| is_a_containers(path)))
}

/// Whether somebody listens at the socket of the network `name`, or may listen.
pub(crate) fn listens(name: &str) -> bool {
    base().is_ok_and(|base| !is_left_over(&base.join(name)))
}

/// Removes what a network has in `directory`, and that too if nothing else is in it.
pub(crate) fn clear(directory: &Path) {
    let _lock = directory.parent().map(|base| lock(base, FlockArg::LockExclusive));
    remove(directory);
}

/// Sees to it that networks can have a place.
pub fn check() -> Result<()> {
    base().and_then(|base| make_private(&base))
}

/// Ends the network `name` that was made with `memo`, and returns when it is gone; what one that was killed has left is
/// removed. `false` if there was none: one with another memo, or with none, is somebody else's and stays.
pub fn end(name: &str, memo: &str) -> Result<bool> {
    end_below(&base()?, name, memo)
}

fn end_below(base: &Path, name: &str, memo: &str) -> Result<bool> {
    let directory = base.join(name);
    if !remembers(&directory, memo) {
        return Ok(false);
    }
    if let Some(server) = server(&directory, name, memo)? {
        end_process(&server).context("cannot end", format!("the network {name}"))?;
    }
    let _lock = lock(base, FlockArg::LockExclusive)?;
    if is_left_over(&directory) && remembers(&directory, memo) {
        remove(&directory);
    }
    Ok(true)
}

fn remember(directory: &Path, memo: &str) -> Result<()> {
    let path = directory.join(MEMO);
    if memo.len() as u64 > MAX_MEMO_BYTES {
        let cause = format!("it would have more than {MAX_MEMO_BYTES} bytes");
        return Err(Error::new("cannot write", path.display(), cause));
    }
    fs::write(&path, memo).context("cannot write", path.display())
}

fn remembers(directory: &Path, memo: &str) -> bool {
    memo_in(directory).is_some_and(|found| found == memo)
}

fn memo_in(directory: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(directory.join(MEMO)).ok()?.take(MAX_MEMO_BYTES).read_to_string(&mut text).ok()?;
    Some(text)
}

/// A descriptor of the process that serves the network in `directory` with `memo`; `None` if it has ended.
fn server(directory: &Path, name: &str, memo: &str) -> Result<Option<OwnedFd>> {
    let about = format!("the network {name}");
    let client = match knock(&directory.join(SOCKET)) {
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => return Ok(None),
        client => client.context("cannot reach", &about)?,
    };
    // Of the process that listens: the one that made the socket.
    let peer = getsockopt(&client, sockopt::PeerCredentials).context("cannot ask for", &about)?;
    if peer.pid() <= 0 {
        let cause = "its process cannot be seen from this process id namespace";
        return Err(Error::new("cannot end", about, cause));
    }
    match process::watch(Pid::from_raw(peer.pid())) {
        // Still listened on, with the same memo: the process is the same, and its network is the one that was meant.
        Ok(server) if !is_left_over(directory) && remembers(directory, memo) => Ok(Some(server)),
        Ok(_) | Err(Errno::ESRCH) => Ok(None),
        Err(errno) => Err(errno).context("cannot watch", about),
    }
}

/// Ends a process, by force if it takes too long.
fn end_process(process: &OwnedFd) -> nix::Result<()> {
    for (signal, patience_ms) in [(Signal::SIGTERM, ENDING_MS), (Signal::SIGKILL, ENDING_MS)] {
        match process::signal(process.as_fd(), signal as i32) {
            Err(Errno::ESRCH) => return Ok(()),
            sent => sent?,
        }
        let mut ended = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ended, patience_ms)? > 0 {
            return Ok(());
        }
    }
    Err(Errno::ETIMEDOUT)
}

/// Connects to the gateway of the network with the name `name`; `None` if it has none.
pub(crate) fn reach_network(name: &str) -> Result<Option<UnixStream>> {
    let socket = base()?.join(NETWORKS).join(name).join(SOCKET);
    match UnixStream::connect(&socket) {
        Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused].contains(&error.kind()) => {
            Ok(None)
        }
        reached => reached.map(Some).context("cannot reach the gateway at", socket.display()),
    }
}

/// Connects to the network `name`.
pub(super) fn connect(name: &str) -> Result<UnixStream> {
    let socket = base()?.join(name).join(SOCKET);
    reach(&socket)
        .context("cannot reach the network", name)
        .map_err(|error| error.hint(format!("{} would be its socket; is it running?", socket.display())))
}

/// Connects to the network that has a socket at `path`.
pub(super) fn connect_at(path: &Path) -> Result<UnixStream> {
    reach(path)
        .context("cannot reach the network at", path.display())
        .map_err(|error| error.hint("it is the path that pasta was given with -c; is it running?"))
}

/// The directory of all networks of this user.
fn base() -> Result<PathBuf> {
    let own = |path: &PathBuf| {
        path.is_absolute()
            && fs::metadata(path)
                .is_ok_and(|about| about.is_dir() && about.uid() == Uid::effective().as_raw())
    };
    let given = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let uid = outer_uid();
    let usual = PathBuf::from(format!("/run/user/{uid}"));
    match given.into_iter().chain([usual]).find(own) {
        Some(runtime) => Ok(runtime.join("rnet")),
        None => {
            let fallback = PathBuf::from(format!("/tmp/rnet-{uid}"));
            make_private(&fallback)?;
            Ok(fallback)
        }
    }
}

/// The user's id outside of our user namespace: hooks run in one, and mean the directory of the user who started them.
fn outer_uid() -> u32 {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    outside(Uid::effective().as_raw(), &map)
}

/// What the id `inside` is outside, by the lines of an id map (user_namespaces(7)).
fn outside(inside: u32, map: &str) -> u32 {
    let in_line = |line: &str| {
        let numbers: Vec<u32> = line.split_whitespace().map_while(|number| number.parse().ok()).collect();
        let [first, outside, count] = numbers[..] else { return None };
        let nth = inside.checked_sub(first).filter(|nth| *nth < count)?;
        outside.checked_add(nth)
    };
    map.lines().find_map(in_line).unwrap_or(inside)
}

/// Sees to it that `directory` exists and is ours alone: in /tmp anybody may have made it.
fn make_private(directory: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error).context("cannot make", directory.display());
        }
        _ => {}
    }
    let about = fs::symlink_metadata(directory).context("cannot look at", directory.display())?;
    if about.is_dir() && about.uid() == Uid::effective().as_raw() && about.mode() & 0o077 == 0 {
        return Ok(());
    }
    Err(Error::new("cannot use", directory.display(), "it is not a directory of this user alone")
        .hint("set XDG_RUNTIME_DIR to one that is"))
}

fn lock(base: &Path, how: FlockArg) -> Result<Flock<File>> {
    let path = base.join(LOCK);
    let file =
        File::options().create(true).append(true).open(&path).context("cannot open", path.display())?;
    Flock::lock(file, how).map_err(|(_, errno)| errno).context("cannot lock", path.display())
}

/// Removes what networks have left that were killed.
fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    let is_ours = |name: OsString| name != OsStr::new(LOCK) && name != OsStr::new(NETWORKS);
    let directories = entries.flatten().filter(|entry| is_ours(entry.file_name()));
    let left =
        directories.map(|entry| entry.path()).filter(|path| !is_a_containers(path) && is_left_over(path));
    left.take(MAX_SWEPT).for_each(|directory| remove(&directory));
}

fn is_a_containers(directory: &Path) -> bool {
    directory.join(RECORD).exists()
}

/// Why the name of `directory` cannot be had.
fn taken(name: &str, directory: &Path) -> Error {
    let free = |cause, hint: &str| Error::new("cannot use the name", name, cause).hint(hint);
    match is_left_over(directory) {
        true => free("a container that has ended has it", &format!("`rnet rm {name}`, or another --name")),
        false => free("a running network has it", "choose another with --name"),
    }
}

fn is_left_over(directory: &Path) -> bool {
    matches!(knock(&directory.join(SOCKET)), Err(Errno::ECONNREFUSED | Errno::ENOENT))
}

/// Connects to whoever listens at `path`. Where many wait already, as he may be stopped, it is for some time that this
/// one waits, too.
fn reach(path: &Path) -> nix::Result<UnixStream> {
    let client = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&client, sockopt::SendTimeout, &TimeVal::seconds(REACHING_S))?;
    connect_to(client.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(client.into())
}

/// Connects to whoever listens at `path` without waiting for him, as he may be stopped: EAGAIN if too many wait
/// already.
fn knock(path: &Path) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let client = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect_to(client.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(client)
}

fn remove(directory: &Path) {
    for file in [DOOR, MEMO, SOCKET] {
        let _ = fs::remove_file(directory.join(file));
    }
    // Not with what somebody else has put there.
    let _ = fs::remove_dir(directory);
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{Backlog, Shutdown, listen, shutdown};

    #[test]
    fn a_name_is_taken_while_its_network_runs_and_free_afterwards() {
        let base = tempfile::tempdir().expect("a directory");
        let base = base.path().join("rnet");
        let place = Place::below(&base, "box", None).expect("a place");
        let taken = Place::below(&base, "box", None).expect_err("taken").to_string();
        assert!(taken.contains("a running network has it") && taken.contains("--name"), "{taken}");
        Place::below(&base, "other", None).expect("another name");
        drop(place);
        assert!(!base.join("box").exists());
        Place::below(&base, "box", None).expect("free again");
    }

    #[test]
    fn what_a_killed_network_has_left_is_removed() {
        let base = tempfile::tempdir().expect("a directory");
        let base = base.path().join("rnet");
        let killed = Place::below(&base, "killed", None).expect("a place");
        let lives = Place::below(&base, "lives", None).expect("a place");
        kill(&killed);
        Place::below(&base, "next", None).expect("a place");
        assert!(!killed.directory.exists());
        assert!(lives.directory.exists());
    }

    #[test]
    fn a_chosen_path_is_taken_from_the_dead_only() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let socket = Socket::at(&path).expect("a free path");
        let taken = Socket::at(&path).expect_err("taken").to_string();
        assert!(taken.contains("in use"), "{taken}");
        drop(socket);
        assert!(!path.exists());
        drop(UnixListener::bind(&path).expect("a free path"));
        Socket::at(&path).expect("its owner is gone");
        fs::write(&path, "text").expect("a free path");
        Socket::at(&path).expect_err("no socket");
        assert_eq!(fs::read_to_string(&path).expect("untouched"), "text");
    }

    #[test]
    fn a_network_that_is_stopped_holds_up_no_other() {
        let base = tempfile::tempdir().expect("a directory");
        let base = base.path().join("rnet");
        let stopped = Place::below(&base, "stopped", Some("ours")).expect("a place");
        listen(&stopped.listener, Backlog::new(0).expect("a length")).expect("a socket");
        let waits = knock(&stopped.directory.join(SOCKET)).expect("room for one");
        Place::below(&base, "next", None).expect("a place");
        assert!(stopped.directory.exists());
        assert!(end_below(&base, "stopped", "ours").is_err(), "its process cannot be told");
        let error = reach(&stopped.directory.join(SOCKET)).expect_err("no room for another");
        assert_eq!(error, Errno::EAGAIN);
        drop(waits);
    }

    // Were the wrong network ended, it would be this process.
    #[test]
    fn a_network_is_ended_only_by_whom_it_was_made_for() {
        let base = tempfile::tempdir().expect("a directory");
        let base = base.path().join("rnet");
        let plain = Place::below(&base, "plain", None).expect("a place");
        let ours = Place::below(&base, "ours", Some("ours")).expect("a place");
        for (place, name) in [(plain, "plain"), (ours, "ours")] {
            assert!(!end_below(&base, name, "theirs").expect("no failure"), "{name}");
            kill(&place);
            assert!(!end_below(&base, name, "theirs").expect("no failure"), "{name}");
            assert!(place.directory.exists(), "{name}");
            assert_eq!(end_below(&base, name, "ours").expect("no failure"), name == "ours");
            assert_eq!(place.directory.exists(), name == "plain");
        }
        assert!(!end_below(&base, "none", "ours").expect("no failure"));
    }

    #[test]
    fn a_memo_that_could_not_be_read_whole_is_refused() {
        let base = tempfile::tempdir().expect("a directory");
        let base = base.path().join("rnet");
        let longest = "x".repeat(MAX_MEMO_BYTES as usize);
        let error =
            Place::below(&base, "box", Some(&format!("{longest}x"))).expect_err("too long").to_string();
        assert!(error.contains("65536") && !base.join("box").exists(), "{error}");
        let place = Place::below(&base, "box", Some(&longest)).expect("just short enough");
        assert!(remembers(&place.directory, &longest));
    }

    /// Closes its socket without removing it, as the end by a signal would.
    fn kill(place: &Place) {
        shutdown(place.listener.as_raw_fd(), Shutdown::Both).expect("a socket");
    }

    #[test]
    fn ids_are_those_outside() {
        for (inside, map, seen) in [
            (0, "         0       1000          1\n", 1000),
            (5, "0 1000 1\n1 100000 65536\n", 100_004),
            (0, "0 0 4294967295", 0),
            (7, "0 1000 1", 7),
            (7, "nonsense", 7),
        ] {
            assert_eq!(outside(inside, map), seen, "{map}");
        }
    }

    #[test]
    fn a_directory_that_others_can_enter_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let base = tempfile::tempdir().expect("a directory");
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).expect("ours");
        let error = Place::below(base.path(), "box", None).expect_err("open to others").to_string();
        assert!(error.contains("XDG_RUNTIME_DIR"), "{error}");
    }
}
