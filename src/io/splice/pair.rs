//! One spliced connection: the client's socket, the guest's, and the bytes on their way through the kernel.
//!
//! Each direction is a [`Way`]. An end of stream is passed on once what came before it is; an error of either socket
//! resets both, after what had arrived before it was read.

use std::io::{self, Read, Write};
use std::net::Shutdown;

use mio::net::TcpStream;
use nix::errno::Errno;

use super::pipe::{Pipe, Pipes};
use crate::io::host;

/// Bytes moved for one connection, each way, before another has its turn.
const TURN_BYTES: u64 = 2 * 1024 * 1024;
/// What comes in pieces below this is copied. A pipe of one page holds as much, and there is none smaller.
const SMALL_BYTES: usize = 4096;

/// Which of the two sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Guest,
}

/// What became of a connection that was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It lives; it has more to do at once if `true`.
    Alive(bool),
    /// Both sides have said all.
    Closed,
    /// The guest does not listen there.
    Refused,
    /// One side failed.
    Failed,
}

/// A connection's two sockets.
pub(super) struct Pair {
    client: TcpStream,
    /// `None` until there is one.
    guest: Option<TcpStream>,
    /// The guest has accepted.
    connected: bool,
    to_guest: Way,
    to_client: Way,
    /// The poll has spoken of an error.
    suspect: bool,
}

impl Pair {
    /// A client without a guest.
    pub(super) fn new(client: TcpStream) -> Self {
        let (to_guest, to_client) = (Way::default(), Way { writable: true, ..Way::default() });
        Self { client, guest: None, connected: false, to_guest, to_client, suspect: false }
    }

    /// Gives it a socket towards the guest, which need not be connected yet.
    pub(super) fn set_guest(&mut self, guest: TcpStream) {
        self.guest = Some(guest);
        self.to_guest.writable = true;
    }

    /// The client, of whom nothing was read if the guest has not accepted.
    pub(super) fn into_client(self) -> TcpStream {
        self.client
    }

    /// Bytes carried to the guest and to the client.
    pub(super) fn carried_bytes(&self) -> (u64, u64) {
        (self.to_guest.carried_bytes, self.to_client.carried_bytes)
    }

    /// Whether the client has yet to take what the guest has said, or will say.
    pub(super) fn owes_client(&self) -> bool {
        self.guest.is_some() && !self.to_client.is_over()
    }

    /// The same the other way round.
    pub(super) fn owes_guest(&self) -> bool {
        self.guest.is_some() && !self.to_guest.is_over()
    }

    /// Remembers what the poll said of one socket.
    pub(super) fn note(&mut self, side: Side, event: &mio::event::Event) {
        let failed = event.is_error();
        self.connected |= side == Side::Guest && event.is_writable() && !event.is_write_closed();
        let (from, to) = match side {
            Side::Client => (&mut self.to_guest, &mut self.to_client),
            Side::Guest => (&mut self.to_client, &mut self.to_guest),
        };
        from.readable |= event.is_readable() || event.is_read_closed() || failed;
        from.has_marks |= event.is_priority() || event.is_read_closed() || failed;
        to.writable |= event.is_writable() || failed;
        self.suspect |= failed;
    }

    /// Moves bytes both ways, and ends of streams.
    pub(super) fn service(&mut self, pipes: &mut Pipes) -> Outcome {
        match self.serve(pipes) {
            Ok(outcome) => outcome,
            // Only a connection that is not yet one can be refused; the client's stands.
            Err(error) if error.raw_os_error() == Some(Errno::ECONNREFUSED as i32) => {
                self.guest = None;
                // A socket that was refused reads like one at the end of its stream.
                self.to_client = Way { writable: self.to_client.writable, ..Way::default() };
                Outcome::Refused
            }
            Err(error) => {
                tracing::trace!(%error, "a spliced connection fails");
                Outcome::Failed
            }
        }
    }

    fn serve(&mut self, pipes: &mut Pipes) -> io::Result<Outcome> {
        let Self { client, guest: Some(guest), connected, to_guest, to_client, suspect } = self else {
            return Ok(Outcome::Alive(false));
        };
        // Nothing is read before somebody takes it: a guest that refuses leaves the client as it was.
        let to_guest_more = if *connected { to_guest.carry(client, guest, pipes) } else { Ok(false) };
        // Both, before an error counts: a side that has reset may have said something before.
        let to_client_more = to_client.carry(guest, client, pipes);
        let more = to_guest_more? | to_client_more?;
        // A side that has said all is not read any more, which would tell of its error.
        if std::mem::take(suspect) {
            for (way, socket) in [(&*to_guest, &*client), (&*to_client, &*guest)] {
                if way.ended
                    && let Some(error) = socket.take_error()?
                {
                    return Err(error);
                }
            }
        }
        if to_guest.is_over() && to_client.is_over() {
            return Ok(Outcome::Closed);
        }
        to_guest.finish(guest);
        to_client.finish(client);
        Ok(Outcome::Alive(more))
    }

    /// Closes both sockets with a reset.
    pub(super) fn reset(self, pipes: &mut Pipes) {
        for pipe in [self.to_guest.pipe, self.to_client.pipe].into_iter().flatten() {
            pipes.put(pipe);
        }
        for stream in [Some(self.client), self.guest].into_iter().flatten() {
            // One that fails has nobody left to tell.
            let _ = host::reset(stream);
        }
    }
}

/// One direction.
#[derive(Default)]
struct Way {
    /// Its source may be read.
    readable: bool,
    /// Its destination may be written.
    writable: bool,
    /// Reading may stop before its source is empty: at the end of the stream, or at urgent data.
    has_marks: bool,
    /// More than small messages came last.
    is_bulk: bool,
    /// Its source has said all.
    ended: bool,
    /// Its destination knows that.
    finished: bool,
    /// What was read and not yet written, if anything.
    pipe: Option<Pipe>,
    carried_bytes: u64,
}

impl Way {
    fn is_empty(&self) -> bool {
        self.pipe.is_none()
    }

    /// Whether all has been said and passed on.
    fn is_over(&self) -> bool {
        self.ended && self.is_empty()
    }

    /// Moves bytes until one side blocks or the turn is over; whether there is more to do. An error is of either.
    fn carry(&mut self, from: &TcpStream, to: &TcpStream, pipes: &mut Pipes) -> io::Result<bool> {
        let end = self.carried_bytes + TURN_BYTES;
        while self.carried_bytes < end {
            if self.is_empty() && !self.read(from, to, pipes)? {
                return Ok(false);
            }
            if !self.is_empty() && !self.drain(to, pipes)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads what there is, and writes it if it is little; whether there was any.
    fn read(&mut self, from: &TcpStream, to: &TcpStream, pipes: &mut Pipes) -> io::Result<bool> {
        if !self.readable || self.ended {
            return Ok(false);
        }
        let read =
            if self.is_bulk || !self.writable { self.fill(from, pipes) } else { self.copy(from, to, pipes) };
        match read {
            Ok(0) => self.ended = true,
            Ok(_) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(error) => return Err(error),
        }
        Ok(false)
    }

    /// Reads into a pipe.
    fn fill(&mut self, from: &TcpStream, pipes: &mut Pipes) -> io::Result<usize> {
        let mut pipe = pipes.take()?;
        let filled = pipe.fill(from);
        if let Ok(bytes @ 1..) = filled {
            self.is_bulk = bytes >= SMALL_BYTES;
            self.pipe = Some(pipe);
        } else {
            pipes.put(pipe);
        }
        filled
    }

    /// Reads a small message and writes it; what is not taken stays in a pipe. For so few bytes that is less work than
    /// a pipe, and less than reading once more to learn that there was no more.
    fn copy(&mut self, mut from: &TcpStream, mut to: &TcpStream, pipes: &mut Pipes) -> io::Result<usize> {
        let mut buffer = [0; SMALL_BYTES];
        let read = from.read(&mut buffer)?;
        self.is_bulk = read == SMALL_BYTES;
        self.readable = self.is_bulk || self.has_marks;
        if read == 0 {
            return Ok(0);
        }
        let written = match to.write(&buffer[..read]) {
            Err(error) if is_passing(&error) => 0,
            wrote => wrote?,
        };
        self.carried_bytes += written as u64;
        if written < read {
            self.pipe = Some(pipes.holding(&buffer[written..read])?);
        }
        Ok(read)
    }

    /// Writes what the pipe holds; whether some was written.
    fn drain(&mut self, to: &TcpStream, pipes: &mut Pipes) -> io::Result<bool> {
        let Some(pipe) = self.pipe.as_mut().filter(|_| self.writable) else { return Ok(false) };
        match pipe.drain(to) {
            Ok(moved) => self.carried_bytes += moved as u64,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.writable = false;
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        if let Some(empty) = self.pipe.take_if(|pipe| pipe.is_empty()) {
            pipes.put(empty);
        }
        Ok(true)
    }

    /// Passes the end of the stream on once all that came before it is.
    fn finish(&mut self, to: &TcpStream) {
        if self.is_over() && !std::mem::replace(&mut self.finished, true) {
            // A socket that its other end has reset cannot be shut down; reading it will tell.
            let _ = to.shutdown(Shutdown::Write);
        }
    }
}

/// Whether a call that failed so may succeed later.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
