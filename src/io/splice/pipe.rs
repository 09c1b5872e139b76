//! Pipes as buffers between two sockets (splice(2)).
//!
//! A connection has one only while bytes are in it, so that idle ones cost nothing and a few pipes serve many busy
//! ones. The larger the pipe, the fewer calls and the fewer wakeups per byte. But a user without privileges has a bound
//! on the pages of all pipes together (pipe(7), `fs.pipe-user-pages-soft`, 64 MiB by default), which other programs
//! need too: only so many pipes are large here, and the kernel's own size does for the rest.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::{pipe2, write};

/// What a large pipe is asked to hold: as much as an unprivileged user may ask for (`fs.pipe-max-size`).
const LARGE_PIPE_BYTES: i32 = 1024 * 1024;
/// Large pipes at once, empty or not: a quarter of what a user has.
const LARGE_PIPES: usize = 16;
/// Empty pipes kept for the next bytes.
const SPARE_PIPES: usize = LARGE_PIPES;
/// Bytes that one call moves at most: more than a pipe can hold.
const CALL_BYTES: usize = 1 << 30;

/// Empty pipes, for whoever needs one.
#[derive(Default)]
pub(super) struct Pipes {
    spare: Vec<Pipe>,
    large: usize,
}

/// A pipe, and how many bytes are in it.
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    held_bytes: usize,
    is_large: bool,
}

impl Pipes {
    /// An empty pipe.
    pub(super) fn take(&mut self) -> io::Result<Pipe> {
        if let Some(pipe) = self.spare.pop() {
            return Ok(pipe);
        }
        let mut pipe = Pipe::new()?;
        // Where the kernel grants no more, it stays as it is.
        if self.large < LARGE_PIPES && fcntl(&pipe.write, FcntlArg::F_SETPIPE_SZ(LARGE_PIPE_BYTES)).is_ok() {
            pipe.is_large = true;
            self.large += 1;
        }
        Ok(pipe)
    }

    /// A pipe with `bytes`, a page at most.
    pub(super) fn holding(&mut self, bytes: &[u8]) -> io::Result<Pipe> {
        let mut pipe = self.take()?;
        match write(&pipe.write, bytes) {
            Ok(written) => {
                pipe.held_bytes = written;
                Ok(pipe)
            }
            Err(errno) => {
                self.put(pipe);
                Err(errno.into())
            }
        }
    }

    /// Takes back any pipe from [`Self::take`], and keeps it if it is empty.
    pub(super) fn put(&mut self, pipe: Pipe) {
        if pipe.is_empty() && self.spare.len() < SPARE_PIPES {
            self.spare.push(pipe);
        } else if pipe.is_large {
            self.large -= 1;
        }
    }
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        Ok(Self { read, write, held_bytes: 0, is_large: false })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_pipes_are_large_and_none_comes_back_with_bytes() {
        let mut pipes = Pipes::default();
        let mut taken: Vec<_> =
            (0..2 * LARGE_PIPES).map(|_| pipes.holding(b"left over").expect("a pipe")).collect();
        assert!(pipes.large <= LARGE_PIPES);
        assert_eq!(taken.iter().filter(|pipe| pipe.is_large).count(), pipes.large);
        taken.drain(..).for_each(|pipe| pipes.put(pipe));
        assert_eq!((pipes.spare.len(), pipes.large), (0, 0));
        let empty = pipes.take().expect("a pipe");
        pipes.put(empty);
        assert_eq!(pipes.spare.len(), 1);
        assert!(pipes.take().is_ok_and(|pipe| pipe.is_empty()) && pipes.spare.is_empty());
    }

    #[test]
    fn a_pipe_that_takes_nothing_still_counts() {
        let mut pipes = Pipes::default();
        let mut pipe = pipes.take().expect("a pipe");
        // Its reader is gone: a write fails with EPIPE.
        pipe.read = pipe.write.try_clone().expect("a copy");
        (pipe.is_large, pipes.large) = (true, 1);
        pipes.put(pipe);
        assert!(pipes.holding(b"no").is_err());
        assert_eq!(pipes.spare.iter().filter(|pipe| pipe.is_large).count(), pipes.large);
    }
}
