//! A container in the background: its standard streams, and the thread that keeps its output.

use std::io::{self, PipeReader, PipeWriter, Read};
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{dup2_stdin, dup2_stdout};

use crate::error::{Context, Result};
use crate::state::{LogWriter, MAX_PIECE_BYTES, Stream};

/// Most that is read of a stream in a turn, in bytes: what a pipe holds.
const CHUNK_BYTES: usize = 64 * 1024;

/// The command's standard streams, seen from outside.
#[derive(Debug)]
pub(super) struct Streams {
    stdout: PipeReader,
    stderr: PipeReader,
    /// The command's end, until it is the only one to have it.
    to_stderr: PipeWriter,
    /// What is never written to, so that the command's input does not end.
    stdin: Option<PipeWriter>,
}

/// Output that is being kept.
#[derive(Debug)]
pub(super) struct Recorder {
    thread: JoinHandle<()>,
    _stdin: Option<PipeWriter>,
}

impl Streams {
    /// Makes standard input and output of this process what those of the command shall be: an input that never ends if
    /// it `keeps_stdin`, else an empty one, and pipes. Messages still go to the caller's standard error.
    pub(super) fn take_over(keeps_stdin: bool) -> Result<Self> {
        let pipe = || io::pipe().context("cannot create", "a pipe");
        let (stdin, to_stdin) = pipe()?;
        let (stdout, to_stdout) = pipe()?;
        let (stderr, to_stderr) = pipe()?;
        dup2_stdin(&stdin)
            .and_then(|()| dup2_stdout(&to_stdout))
            .context("cannot replace", "standard streams")?;
        Ok(Self { stdout, stderr, to_stderr, stdin: keeps_stdin.then_some(to_stdin) })
    }

    /// What the command's standard error shall be.
    pub(super) fn stderr(&self) -> BorrowedFd<'_> {
        self.to_stderr.as_fd()
    }

    /// Starts to keep what comes. This process's own ends must have been let go of by now.
    pub(super) fn keep(self, log: LogWriter) -> Result<Recorder> {
        let Self { stdout, stderr, to_stderr, stdin } = self;
        drop(to_stderr);
        let thread = thread::Builder::new()
            .name("rnet-log".into())
            .spawn(move || {
                pump(vec![Source::new(stdout, Stream::Stdout), Source::new(stderr, Stream::Stderr)], log)
            })
            .context("cannot start", "the log's thread")?;
        Ok(Recorder { thread, _stdin: stdin })
    }
}

impl Recorder {
    /// Waits until everything is kept that a command has left, which has ended with all that it has started.
    pub(super) fn finish(self) {
        if self.thread.join().is_err() {
            tracing::warn!("the end of the container's output is lost");
        }
    }
}

/// A stream on its way into the log.
struct Source {
    pipe: PipeReader,
    stream: Stream,
    /// A line without its end.
    begun: Vec<u8>,
}

fn pump(mut sources: Vec<Source>, mut log: LogWriter) {
    while !sources.is_empty() {
        let mut polled: Vec<_> =
            sources.iter().map(|source| PollFd::new(source.pipe.as_fd(), PollFlags::POLLIN)).collect();
        match poll(&mut polled, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Err(errno) => return tracing::warn!("the container's output is no longer kept: {errno}"),
            Ok(_) => {}
        }
        let mut ready = polled.iter().map(|fd| fd.any().unwrap_or(true)).collect::<Vec<_>>().into_iter();
        sources.retain_mut(|source| ready.next() != Some(true) || source.advance(&mut log));
    }
}

impl Source {
    fn new(pipe: PipeReader, stream: Stream) -> Self {
        Self { pipe, stream, begun: Vec::new() }
    }

    /// Keeps what can be read at once; false at the end.
    fn advance(&mut self, log: &mut LogWriter) -> bool {
        let mut chunk = vec![0; CHUNK_BYTES];
        match self.pipe.read(&mut chunk) {
            Ok(0) => {
                if !self.begun.is_empty() {
                    log.keep(self.stream, &[text(&mem::take(&mut self.begun))]);
                }
                false
            }
            Ok(len) => {
                self.begun.extend_from_slice(&chunk[..len]);
                log.keep(self.stream, &lines(&mut self.begun));
                true
            }
            Err(error) => error.kind() == io::ErrorKind::Interrupted,
        }
    }
}

/// Takes the lines from the front of `begun` that have ended, or are too long to wait for their end.
fn lines(begun: &mut Vec<u8>) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = &begun[..];
    while let Some(len) = piece(rest) {
        let (line, after) = rest.split_at(len);
        found.push(text(line));
        rest = after;
    }
    *begun = rest.to_vec();
    found
}

/// The length of the first piece; `None` if it has not ended.
fn piece(bytes: &[u8]) -> Option<usize> {
    let window = &bytes[..bytes.len().min(MAX_PIECE_BYTES)];
    let newline = window.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
    newline.or_else(|| (bytes.len() >= MAX_PIECE_BYTES).then(|| whole_characters(window)))
}

/// The length without a character at the end that is cut in two.
fn whole_characters(bytes: &[u8]) -> usize {
    match str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => error.valid_up_to().max(1),
        _ => bytes.len(),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_when_they_have_ended() {
        let mut begun = b"one\ntwo\n\nthr".to_vec();
        assert_eq!(lines(&mut begun), ["one\n", "two\n", "\n"]);
        assert_eq!(begun, b"thr");
        begun.extend(b"ee\n");
        assert_eq!(lines(&mut begun), ["three\n"]);
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        let mut begun = vec![b'x'; MAX_PIECE_BYTES - 1];
        begun.extend("\u{e4}\u{e4}\n".as_bytes());
        let pieces = lines(&mut begun);
        assert_eq!(pieces.iter().map(String::len).collect::<Vec<_>>(), [MAX_PIECE_BYTES - 1, 5]);
        assert_eq!(pieces[1], "\u{e4}\u{e4}\n");
        assert!(begun.is_empty());
    }
}
