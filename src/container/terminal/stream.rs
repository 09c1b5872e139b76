//! A standard stream of rnet, read and written without waiting, and what waits in between.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{isatty, read, write};

/// Bytes on their way in one direction: what a terminal's line discipline holds, several times.
const CHUNK_BYTES: usize = 16 * 1024;
/// Bytes that a blocking stream gets at a time: a pipe that is ready takes them at once (PIPE_BUF in pipe(7)), and most
/// else does.
const CAUTIOUS_BYTES: usize = 512;

/// A standard stream.
///
/// The open file of a terminal or pipe is shared with the caller's other processes, which would notice O_NONBLOCK; so
/// it is opened once more, where that is allowed. A regular file never waits, and opened anew would begin at its start.
#[derive(Debug)]
pub(super) struct Stream {
    fd: OwnedFd,
    waits: bool,
}

impl Stream {
    /// `stream`, to be accessed as `access` says.
    pub(super) fn new(stream: &impl AsFd, access: OFlag) -> io::Result<Self> {
        let kind = SFlag::from_bits_truncate(fstat(stream)?.st_mode) & SFlag::S_IFMT;
        let may_wait = matches!(kind, SFlag::S_IFIFO | SFlag::S_IFSOCK) || isatty(stream).unwrap_or(false);
        match if may_wait { reopened(stream, access) } else { None } {
            Some(fd) => Ok(Self { fd, waits: false }),
            None => Ok(Self { fd: stream.as_fd().try_clone_to_owned()?, waits: may_wait }),
        }
    }

    /// Whether a call may wait although a poll has not said that it need not.
    pub(super) fn waits(&self) -> bool {
        self.waits
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn reopened(stream: &impl AsFd, access: OFlag) -> Option<OwnedFd> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", stream.as_fd().as_raw_fd()));
    open(&path, access | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC, Mode::empty()).ok()
}

/// Bytes that were read and not yet all written.
#[derive(Debug)]
pub(super) struct Chunk {
    bytes: Box<[u8]>,
    pending: Range<usize>,
}

impl Chunk {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; CHUNK_BYTES].into(), pending: 0..0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Bytes that are not yet written.
    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn clear(&mut self) {
        self.pending = 0..0;
    }

    /// Holds just `byte`.
    pub(super) fn put(&mut self, byte: u8) {
        self.bytes[0] = byte;
        self.pending = 0..1;
    }

    /// Reads anew; how many bytes.
    pub(super) fn fill(&mut self, from: &impl AsFd) -> nix::Result<usize> {
        let len = read(from, &mut self.bytes)?;
        self.pending = 0..len;
        Ok(len)
    }

    /// Writes what it can; the bytes that were taken.
    pub(super) fn write(&mut self, to: &impl AsFd, cautious: bool) -> nix::Result<&[u8]> {
        let most = if cautious { CAUTIOUS_BYTES } else { CHUNK_BYTES };
        let start = self.pending.start;
        let end = self.pending.end.min(start + most);
        let len = write(to, &self.bytes[start..end])?;
        self.pending.start += len;
        Ok(&self.bytes[start..start + len])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_cannot_be_opened_anew_may_wait() {
        let (socket, _other) = UnixStream::pair().expect("a socket pair");
        assert!(Stream::new(&socket, OFlag::O_RDONLY).expect("a descriptor to spare").waits());
    }

    #[test]
    fn file_goes_on_where_it_is_and_pipe_does_not_wait() {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(b"before ").expect("room");
        let stream = Stream::new(&file, OFlag::O_WRONLY).expect("a descriptor to spare");
        assert!(!stream.waits());
        write(&stream, b"after").expect("room");
        let mut text = String::new();
        file.rewind().and_then(|()| file.read_to_string(&mut text)).expect("readable");
        assert_eq!(text, "before after");
        let (reader, _writer) = io::pipe().expect("a pipe");
        let stream = Stream::new(&reader, OFlag::O_RDONLY).expect("a descriptor to spare");
        assert!(!stream.waits());
        assert_eq!(Chunk::new().fill(&stream), Err(nix::errno::Errno::EAGAIN));
    }

    #[test]
    fn chunk_is_written_in_pieces_until_it_is_empty() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let source = File::open("/dev/zero").expect("every Linux has it");
        let mut chunk = Chunk::new();
        assert_eq!(chunk.fill(&source), Ok(CHUNK_BYTES));
        let mut pieces = 0;
        while !chunk.is_empty() {
            assert!(chunk.write(&writer, true).expect("room for a piece").len() <= CAUTIOUS_BYTES);
            reader.read_exact(&mut [0; CAUTIOUS_BYTES]).expect("just written");
            pieces += 1;
        }
        assert_eq!(pieces, CHUNK_BYTES / CAUTIOUS_BYTES);
    }
}
