//! The socket factory: a process inside a guest's network namespace that makes sockets there and passes them out.
//!
//! A socket belongs to the network namespace in which it was made, whoever uses it later, and a process with threads
//! cannot enter another user namespace. So a process of one thread does, once, and from then on answers requests: one
//! byte, for a batch of unconnected sockets of a family, or for the tables in which the kernel shows the sockets of that
//! namespace. It is no process of the guest: its PID namespace is the host's, so that nothing in the guest can name,
//! signal, trace or see it; and it keeps no capability in the guest's user namespace. It ends with its sockets, or with
//! the thread that has started it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{chdir, dup2_stderr, dup2_stdin, dup2_stdout, setsid};
use sendfd::SendWithFd;

use super::process::{self, Child};
use super::{datagram, diag, privilege, rights, stream};
use crate::config::Transport;
use crate::error::{Context, Error, Result, exit};
use crate::net::Family;

/// Sockets passed out at once.
pub const BATCH_SOCKETS: usize = 32;
/// How long an answer that is waited for may take, in milliseconds.
const PATIENCE_MS: u16 = 5000;
/// Longest report of a failure that is read, in bytes.
const MAX_REPORT_BYTES: u64 = 16 * 1024;

const V4: u8 = 4;
const V6: u8 = 6;
const DATAGRAM_V4: u8 = 14;
const DATAGRAM_V6: u8 = 16;
const TCP_TABLES: u8 = b't';
const UDP_TABLES: u8 = b'u';
const DIAG: u8 = b'd';
/// In an answer, beside what was asked for: the guest's kernel does not have such a thing.
const MISSING: u8 = 0x80;
/// A request that brings a further user's end.
const ANOTHER: u8 = b'a';
/// What the factory says once it stands; anything else is the beginning of a report.
const READY: u8 = b'+';

/// A line to the factory. Each has one user, as answers do not say to whom: see [`Factory::another`].
#[derive(Debug)]
pub struct Factory {
    socket: UnixStream,
}

/// What [`Factory::obtain`] can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// TCP sockets as in a [`Batch`].
    Streams(Family),
    /// UDP sockets: nonblocking, close-on-exec, unbound.
    Datagrams(Family),
    /// `/proc/net/tcp` or `/proc/net/udp` of the namespace, open, and the same for IPv6 if it has that.
    Tables(Transport),
    /// A socket for [`diag::bound`].
    Diag,
}

impl Want {
    fn byte(self) -> u8 {
        match self {
            Self::Streams(Family::V4) => V4,
            Self::Streams(Family::V6) => V6,
            Self::Datagrams(Family::V4) => DATAGRAM_V4,
            Self::Datagrams(Family::V6) => DATAGRAM_V6,
            Self::Tables(Transport::Tcp) => TCP_TABLES,
            Self::Tables(Transport::Udp) => UDP_TABLES,
            Self::Diag => DIAG,
        }
    }

    fn of(byte: u8) -> Option<Self> {
        match byte {
            V4 => Some(Self::Streams(Family::V4)),
            V6 => Some(Self::Streams(Family::V6)),
            DATAGRAM_V4 => Some(Self::Datagrams(Family::V4)),
            DATAGRAM_V6 => Some(Self::Datagrams(Family::V6)),
            TCP_TABLES => Some(Self::Tables(Transport::Tcp)),
            UDP_TABLES => Some(Self::Tables(Transport::Udp)),
            DIAG => Some(Self::Diag),
            _ => None,
        }
    }

    /// What there is of it by now, in the thread's namespace; an error if the kernel does not have such a thing.
    fn make(self) -> io::Result<Vec<OwnedFd>> {
        match self {
            Self::Streams(family) => make(|| stream::open(family)),
            Self::Datagrams(family) => make(|| datagram::open_unbound_udp(family)),
            Self::Tables(Transport::Tcp) => Ok(tables(["/proc/self/net/tcp", "/proc/self/net/tcp6"])),
            Self::Tables(Transport::Udp) => Ok(tables(["/proc/self/net/udp", "/proc/self/net/udp6"])),
            Self::Diag => diag::open().map(|socket| vec![socket]),
        }
    }
}

/// An answer: fewer sockets than [`BATCH_SOCKETS`], and perhaps none, if no more could be made, or received, by now.
#[derive(Debug)]
pub struct Batch {
    /// Their family.
    pub family: Family,
    /// The guest's kernel does not have that family, and there never are any.
    pub missing: bool,
    /// Nonblocking, close-on-exec, unconnected.
    pub sockets: Vec<OwnedFd>,
}

/// Forks a factory, which first calls `enter`: that changes to the user and network namespaces of the guest, and
/// still has all descriptors of this process. No other thread may exist.
pub(crate) fn start(enter: impl FnOnce() -> Result<()>) -> Result<(Child, Factory)> {
    let (ours, theirs) = UnixStream::pair().context("cannot create", "socket pair")?;
    let child = process::fork(move || main(theirs, enter));
    Ok((child.context("cannot start", "the socket factory")?, Factory { socket: ours }))
}

impl Factory {
    /// Waits until it stands, or says why it does not. From then on no call blocks.
    pub(crate) fn await_ready(&self) -> Result<()> {
        let mut first = [0];
        let socket = &mut &self.socket;
        let heard = socket.read_exact(&mut first).and_then(|()| match first {
            [READY] => self.socket.set_nonblocking(true).map(|()| None),
            [byte] => {
                let mut report = vec![byte];
                socket.take(MAX_REPORT_BYTES).read_to_end(&mut report)?;
                Ok(Error::decode(&String::from_utf8_lossy(&report)))
            }
        });
        match heard.context("cannot hear from", "the socket factory")? {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// A further line to the same factory, for another user.
    pub fn another(&self) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        self.socket.send_with_fd(&[ANOTHER], &[theirs.as_raw_fd()])?;
        ours.set_nonblocking(true)?;
        Ok(Self { socket: ours })
    }

    /// Asks for a batch, which [`Self::receive`] will get.
    pub fn request(&self, family: Family) -> io::Result<()> {
        self.ask(Want::Streams(family))
    }

    /// The next answer. `WouldBlock` if there is none yet; `UnexpectedEof` if the factory is gone, `ConnectionReset` if
    /// it has left a request unread. A lack of descriptors here makes the batch smaller, and is no error.
    pub fn receive(&self) -> io::Result<Batch> {
        match self.hear()? {
            Answer { to: Want::Streams(family), missing, fds } => Ok(Batch { family, missing, sockets: fds }),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Asks, and waits for the answer; it is empty where the guest's kernel does not have such a thing, and nowhere else. For a
    /// user of this line who asks in no other way.
    pub fn obtain(&self, want: Want) -> io::Result<Vec<OwnedFd>> {
        self.ask(want)?;
        loop {
            let mut polled = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut polled, PollTimeout::from(PATIENCE_MS))?;
            match self.hear() {
                Ok(answer) if answer.to != want => return Err(io::ErrorKind::InvalidData.into()),
                Ok(Answer { missing: false, fds, .. }) if fds.is_empty() => {
                    return Err(io::Error::other("no more files may be open"));
                }
                Ok(answer) => return Ok(answer.fds),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && ready > 0 => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn ask(&self, want: Want) -> io::Result<()> {
        (&self.socket).write_all(&[want.byte()])
    }

    fn hear(&self) -> io::Result<Answer> {
        let mut byte = [0];
        let (len, fds) = rights::receive::<BATCH_SOCKETS>(&self.socket, &mut byte)?;
        let missing = byte[0] & MISSING != 0;
        match (len, Want::of(byte[0] & !MISSING)) {
            (0, _) => Err(io::ErrorKind::UnexpectedEof.into()),
            (_, None) => Err(io::ErrorKind::InvalidData.into()),
            (_, Some(to)) => Ok(Answer { to, missing, fds }),
        }
    }
}

/// What comes back for a request.
struct Answer {
    to: Want,
    missing: bool,
    fds: Vec<OwnedFd>,
}

impl AsFd for Factory {
    /// Readable when there is an answer, and when the factory is gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The factory's process.
fn main(mut socket: UnixStream, enter: impl FnOnce() -> Result<()>) -> u8 {
    let entered = enter();
    process::close_all_but(&[socket.as_raw_fd()]);
    let stands = entered.and_then(|()| confine().context("cannot confine", "the socket factory"));
    if let Err(error) = stands {
        // Whoever does not listen any more needs no report.
        let _ = socket.write_all(error.encode().as_bytes());
        return exit::RNET_FAILED;
    }
    match serve(socket) {
        Ok(()) => 0,
        Err(_) => exit::RNET_FAILED,
    }
}

/// A session of its own, as signals of the terminal are not meant for it; nothing of the caller's is kept busy, who may
/// wait for the end of a stream; the death signal after the change of namespaces, which may clear it.
fn confine() -> nix::Result<()> {
    setsid()?;
    chdir("/")?;
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    dup2_stdin(&null).and_then(|()| dup2_stdout(&null)).and_then(|()| dup2_stderr(&null))?;
    prctl::set_name(c"rnet-sockets")?;
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    prctl::set_no_new_privs()?;
    privilege::drop_all()?;
    prctl::set_dumpable(false)
}

/// Answers requests until all other ends are closed.
fn serve(mut first: UnixStream) -> io::Result<()> {
    first.write_all(&[READY])?;
    let mut users = vec![first];
    while !users.is_empty() {
        let mut polled: Vec<_> =
            users.iter().map(|user| PollFd::new(user.as_fd(), PollFlags::POLLIN)).collect();
        poll(&mut polled, PollTimeout::NONE)?;
        let asks: Vec<bool> = polled.iter().map(|user| user.any().unwrap_or(false)).collect();
        let mut found = Vec::new();
        let mut asks = asks.into_iter();
        users.retain(|user| match asks.next() {
            Some(true) => answer(user).map(|another| found.extend(another)).is_ok(),
            _ => true,
        });
        users.extend(found);
    }
    Ok(())
}

/// Answers one request; a further user, if that was what it brought. An error is the user's end.
fn answer(user: &UnixStream) -> io::Result<Option<UnixStream>> {
    let mut byte = [0];
    let (len, mut received) = rights::receive::<1>(user, &mut byte)?;
    if len == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if let Some(want) = Want::of(byte[0]) {
        pass_out(user, byte[0], &want.make())?;
    }
    Ok(received.pop().map(UnixStream::from))
}

/// A batch, as far as it can be had; an error if the kernel does not have its family.
fn make(open: impl Fn() -> io::Result<OwnedFd>) -> io::Result<Vec<OwnedFd>> {
    let is_missing = |error: &io::Error| error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32);
    let mut sockets = Vec::new();
    while sockets.len() < BATCH_SOCKETS {
        match open() {
            Ok(socket) => sockets.push(socket),
            Err(error) if is_missing(&error) => return Err(error),
            Err(_) => break,
        }
    }
    Ok(sockets)
}

/// Those of the tables that there are.
fn tables(names: [&str; 2]) -> Vec<OwnedFd> {
    names.iter().filter_map(|name| File::open(name).ok()).map(OwnedFd::from).collect()
}

/// Answers `asked`.
fn pass_out(mut user: &UnixStream, asked: u8, made: &io::Result<Vec<OwnedFd>>) -> io::Result<()> {
    let Ok(sockets) = made else { return user.write_all(&[asked | MISSING]) };
    let fds: Vec<_> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    match user.send_with_fd(&[asked], &fds) {
        // As many are on their way as this user may have (ETOOMANYREFS), or there is no memory: none by now.
        Err(_) => user.write_all(&[asked]),
        Ok(_) => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A factory without a process.

    use super::*;

    impl Factory {
        /// A line whose other end is the test's.
        pub(crate) fn with_end() -> (Self, UnixStream) {
            let (ours, theirs) = UnixStream::pair().expect("a socket pair");
            ours.set_nonblocking(true).expect("a flag");
            (Self { socket: ours }, theirs)
        }

        /// A line to a thread that makes sockets in this network namespace. It ends with the line.
        pub(crate) fn in_thread() -> Self {
            let (ours, theirs) = UnixStream::pair().expect("a socket pair");
            let factory = Self { socket: ours };
            std::thread::spawn(|| serve(theirs));
            factory.await_ready().expect("it stands");
            factory
        }
    }

    /// Answers `asked` at the factory's `end` with sockets as far as `open` makes them.
    pub(crate) fn answer_with(mut end: &UnixStream, asked: Family, open: impl Fn() -> io::Result<OwnedFd>) {
        let mut byte = [0];
        end.read_exact(&mut byte).expect("a request");
        assert_eq!(Want::of(byte[0]), Some(Want::Streams(asked)));
        pass_out(end, byte[0], &make(open)).expect("the user is there");
    }
}

#[cfg(test)]
mod tests {
    use super::testing::answer_with;
    use super::*;

    #[test]
    fn a_batch_that_does_not_fit_is_a_smaller_one() {
        let (factory, end) = Factory::with_end();
        let sockets: Vec<_> = (0..=BATCH_SOCKETS).map(|_| end.as_raw_fd()).collect();
        end.send_with_fd(&[V4], &sockets).expect("room");
        let batch = factory.receive().expect("an answer");
        assert_eq!((batch.family, batch.missing, batch.sockets.len()), (Family::V4, false, BATCH_SOCKETS));
    }

    #[test]
    fn none_by_now_is_not_none_ever() {
        let (factory, end) = Factory::with_end();
        for (errno, missing) in [(Errno::EMFILE, false), (Errno::ENOMEM, false), (Errno::EAFNOSUPPORT, true)]
        {
            factory.request(Family::V6).expect("room");
            answer_with(&end, Family::V6, || Err(errno.into()));
            let batch = factory.receive().expect("an answer");
            assert_eq!(
                (batch.family, batch.missing, batch.sockets.len()),
                (Family::V6, missing, 0),
                "{errno}"
            );
        }
    }

    #[test]
    fn what_is_waited_for_is_empty_only_where_it_cannot_be_had() {
        let (factory, mut end) = Factory::with_end();
        let want = Want::Datagrams(Family::V6);
        end.write_all(&[DATAGRAM_V6 | MISSING]).expect("room");
        assert!(factory.obtain(want).expect("no IPv6").is_empty());
        for wrong in [DATAGRAM_V6, DATAGRAM_V4, 0] {
            end.write_all(&[wrong]).expect("room");
            factory.obtain(want).expect_err("it is not there by now, or was not asked for");
        }
    }

    #[test]
    fn sockets_and_tables_of_both_transports_are_had() {
        let factory = Factory::in_thread();
        let datagrams = factory.obtain(Want::Datagrams(Family::V4)).expect("sockets");
        assert_eq!(datagrams.len(), BATCH_SOCKETS);
        for transport in [Transport::Tcp, Transport::Udp] {
            let tables = factory.obtain(Want::Tables(transport)).expect("tables");
            let mut text = String::new();
            File::from(tables.into_iter().next().expect("IPv4")).read_to_string(&mut text).expect("readable");
            assert_eq!(text.split_whitespace().nth(1), Some("local_address"));
        }
    }

    #[test]
    fn each_user_gets_what_it_asks_for_until_it_leaves() {
        let factory = Factory::in_thread();
        let other = factory.another().expect("a second line");
        for line in [&other, &factory, &other] {
            line.request(Family::V4).expect("room");
            let mut polled = [PollFd::new(line.as_fd(), PollFlags::POLLIN)];
            poll(&mut polled, PollTimeout::from(5000u16)).expect("an answer in time");
            let batch = line.receive().expect("an answer");
            assert_eq!((batch.family, batch.sockets.len()), (Family::V4, BATCH_SOCKETS));
        }
    }
}
