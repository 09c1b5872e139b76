//! Pipes as buffers between two sockets (splice(2)).
//!
//! A connection has one only while bytes are in it, so that idle ones cost nothing and a few pipes serve many busy
//! ones. A user without privileges has a bound on the pages of all pipes together (pipe(7),
//! `fs.pipe-user-pages-soft`, 64 MiB by default): what stays in the pool is little of that, and beyond the bound the
//! kernel's smaller pipes do as well, only slower.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::{pipe2, write};

/// What a pipe is asked to hold. It counts pages, of which the kernel's own buffers have up to eight each.
const PIPE_BYTES: i32 = 1024 * 1024;
/// Empty pipes kept for the next bytes.
const SPARE_PIPES: usize = 16;
/// Bytes that one call moves at most: more than a pipe can hold.
const CALL_BYTES: usize = 1 << 30;

/// Empty pipes, for whoever needs one.
#[derive(Default)]
pub(super) struct Pipes {
    spare: Vec<Pipe>,
}

/// A pipe, and how many bytes are in it.
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    held_bytes: usize,
}

impl Pipes {
    /// An empty pipe.
    pub(super) fn take(&mut self) -> io::Result<Pipe> {
        match self.spare.pop() {
            Some(pipe) => Ok(pipe),
            None => Pipe::new(),
        }
    }

    /// A pipe with `bytes`, a page at most.
    pub(super) fn holding(&mut self, bytes: &[u8]) -> io::Result<Pipe> {
        let mut pipe = self.take()?;
        pipe.held_bytes = write(&pipe.write, bytes)?;
        Ok(pipe)
    }

    /// Takes a pipe back; one that is not empty is thrown away.
    pub(super) fn put(&mut self, pipe: Pipe) {
        if pipe.is_empty() && self.spare.len() < SPARE_PIPES {
            self.spare.push(pipe);
        }
    }
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // Where the kernel grants no more, it stays as it is.
        let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
        Ok(Self { read, write, held_bytes: 0 })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held_bytes == 0
    }

    /// Moves what waits in `socket` here, as far as it fits; the pipe must be empty, so that `WouldBlock` is about the
    /// socket. Bytes moved, 0 at the end of the stream.
    pub(super) fn fill(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        let moved = moved(socket, &self.write)?;
        self.held_bytes += moved;
        Ok(moved)
    }

    /// Moves what is here into `socket`, as far as that takes it; the pipe must not be empty. Bytes moved.
    pub(super) fn drain(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        let moved = moved(&self.read, socket)?;
        self.held_bytes = self.held_bytes.saturating_sub(moved);
        Ok(moved)
    }
}

fn moved(from: &impl AsFd, to: &impl AsFd) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
    loop {
        match splice(from, None, to, None, CALL_BYTES, flags) {
            Err(Errno::EINTR) => {}
            done => return Ok(done?),
        }
    }
}
