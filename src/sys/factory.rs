//! The socket factory: a process inside a guest's network namespace that makes sockets there and passes them out.
//!
//! A socket belongs to the network namespace in which it was made, whoever uses it later, and a process with threads
//! cannot enter another user namespace. So a process of one thread does, once, and from then on answers requests: one
//! byte, for a batch of unconnected sockets of a family, or for the tables in which the kernel shows the sockets of that
//! namespace. It is no process of the guest: its PID namespace is the host's, so that nothing in the guest can name,
//! signal, trace or see it; and it keeps no capability in the guest's user namespace. It ends with its sockets, or with
//! the thread that has started it.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use libc::c_int;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::setsid;
use sendfd::{RecvWithFd, SendWithFd};

use super::process::{self, Child};
use super::{datagram, stream};
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
            _ => None,
        }
    }

    /// What there is of it, in the thread's namespace.
    fn make(self) -> Vec<OwnedFd> {
        let sockets =
            |open: &dyn Fn() -> io::Result<OwnedFd>| (0..BATCH_SOCKETS).map_while(|_| open().ok()).collect();
        let tables = |names: [&str; 2]| {
            names.iter().filter_map(|name| File::open(name).ok()).map(OwnedFd::from).collect()
        };
        match self {
            Self::Streams(family) => sockets(&|| stream::open(family)),
            Self::Datagrams(family) => sockets(&|| datagram::open_unbound_udp(family)),
            Self::Tables(Transport::Tcp) => tables(["/proc/self/net/tcp", "/proc/self/net/tcp6"]),
            Self::Tables(Transport::Udp) => tables(["/proc/self/net/udp", "/proc/self/net/udp6"]),
        }
    }
}

/// An answer: fewer sockets than [`BATCH_SOCKETS`] if no more could be made, and perhaps none.
#[derive(Debug)]
pub struct Batch {
    /// Their family.
    pub family: Family,
    /// Nonblocking, close-on-exec, unconnected.
    pub sockets: Vec<OwnedFd>,
}

/// Forks a factory, which first calls `enter`: that changes to the user and network namespaces of the guest, by names
/// in `/proc` or the file system, as no descriptor is left to it. No other thread may exist.
pub(crate) fn start(enter: impl FnOnce() -> Result<()>) -> Result<(Child, Factory)> {
    let (ours, theirs) = UnixStream::pair().context("cannot create", "socket pair")?;
    let child = process::spawn(CloneFlags::empty(), theirs, |socket| main(socket, enter));
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

    /// The next answer. `WouldBlock` if there is none yet; `UnexpectedEof` if the factory is gone.
    pub fn receive(&self) -> io::Result<Batch> {
        match self.hear()? {
            (Want::Streams(family), sockets) => Ok(Batch { family, sockets }),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Asks, and waits for the answer; it is empty where the guest does not have the family. For a user of this line who
    /// asks in no other way.
    pub fn obtain(&self, want: Want) -> io::Result<Vec<OwnedFd>> {
        self.ask(want)?;
        loop {
            let mut polled = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut polled, PollTimeout::from(PATIENCE_MS))?;
            match self.hear() {
                Ok((got, fds)) if got == want => return Ok(fds),
                Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && ready > 0 => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn ask(&self, want: Want) -> io::Result<()> {
        (&self.socket).write_all(&[want.byte()])
    }

    fn hear(&self) -> io::Result<(Want, Vec<OwnedFd>)> {
        let mut byte = [0];
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; BATCH_SOCKETS]);
        let mut buffers = [io::IoSliceMut::new(&mut byte)];
        let socket = self.socket.as_raw_fd();
        let message = recvmsg::<()>(socket, &mut buffers, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let len = message.bytes;
        let sockets = message.cmsgs()?.flat_map(|control| match control {
            ControlMessageOwned::ScmRights(fds) => fds,
            _ => Vec::new(),
        });
        // SAFETY: the kernel has just made these for us, and nothing else knows of them.
        let sockets = sockets.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect();
        match (len, Want::of(byte[0])) {
            (0, _) => Err(io::ErrorKind::UnexpectedEof.into()),
            (_, None) => Err(io::ErrorKind::InvalidData.into()),
            (_, Some(want)) => Ok((want, sockets)),
        }
    }
}

impl AsFd for Factory {
    /// Readable when there is an answer, and when the factory is gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The factory's process.
fn main(mut socket: UnixStream, enter: impl FnOnce() -> Result<()>) -> u8 {
    let stands = enter().and_then(|()| confine().context("cannot confine", "the socket factory"));
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

/// A session of its own, as signals of the terminal are not meant for it; the death signal after the change of
/// namespaces, which may clear it.
fn confine() -> nix::Result<()> {
    setsid()?;
    prctl::set_name(c"rnet-sockets")?;
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    prctl::set_no_new_privs()?;
    drop_capabilities()?;
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
    let mut fds = [-1];
    let (len, received) = user.recv_with_fd(&mut byte, &mut fds)?;
    // SAFETY: the kernel has just made this fd for us, and nothing else knows of it.
    let another = (received > 0).then(|| unsafe { UnixStream::from_raw_fd(fds[0]) });
    if len == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if let Some(want) = Want::of(byte[0]) {
        let made = want.make();
        let fds: Vec<_> = made.iter().map(AsRawFd::as_raw_fd).collect();
        user.send_with_fd(&byte, &fds)?;
    }
    Ok(another)
}

/// `struct __user_cap_header_struct` and an empty pair of `__user_cap_data_struct` (capset(2), version 3).
#[repr(C)]
struct CapHeader {
    version: u32,
    pid: c_int,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

fn drop_capabilities() -> nix::Result<()> {
    let header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let none = [[0u32; 3]; 2];
    // SAFETY: both point to initialised memory of the layout that version 3 has, and are only read.
    let done = unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const none) };
    Errno::result(done).map(drop)
}
