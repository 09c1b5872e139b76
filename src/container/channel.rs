//! What parent and child say to each other before the command starts.
//!
//! The parent lets the child go on with one byte; the child reports in frames of a kind, a length (32 bits,
//! little-endian) and text. The descriptors of the link and of the terminal follow their own frames. execve closes the child's end.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use crate::error::Error;
use crate::sys::link::{self, LinkFd};
use crate::sys::process::Child;
use crate::sys::rights;

/// Longest text of a frame, in bytes; more is cut.
const MAX_TEXT: usize = 16 * 1024;

/// One end.
#[derive(Debug)]
pub(super) struct Channel(UnixStream);

/// What the child reports.
#[derive(Debug)]
pub(super) enum Report {
    /// Worth a warning.
    Note(String),
    /// The guest's link stands.
    Link(LinkFd),
    /// The master of the command's own terminal.
    Terminal(OwnedFd),
    /// A process was made for the parent.
    Child(Child),
    /// Everything stands; the command can start.
    Ready,
    /// It is over.
    Failed(Error),
}

const NOTE: u8 = b'n';
const LINK: u8 = b'l';
const TERMINAL: u8 = b't';
const CHILD: u8 = b'c';
const READY: u8 = b'r';
const FAILED: u8 = b'f';

impl Channel {
    /// Parent's and child's end.
    pub(super) fn pair() -> io::Result<(Self, Self)> {
        UnixStream::pair().map(|(ours, theirs)| (Self(ours), Self(theirs)))
    }

    /// The end that is `socket`.
    pub(super) fn new(socket: UnixStream) -> Self {
        Self(socket)
    }

    /// The same end once more.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// What carries it, for those who have agreed on something else.
    pub(super) fn stream(&self) -> &UnixStream {
        &self.0
    }

    /// Lets the child go on.
    pub(super) fn release(&self) -> io::Result<()> {
        (&self.0).write_all(&[0])
    }

    /// Waits for [`Self::release`]; false if the parent is gone.
    pub(super) fn await_release(&self) -> bool {
        (&self.0).read_exact(&mut [0]).is_ok()
    }

    /// The child's next report; `None` once its end is closed.
    pub(super) fn receive(&self) -> io::Result<Option<Report>> {
        let mut head = [0; 5];
        match (&self.0).read_exact(&mut head) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            done => done?,
        }
        let [kind, length @ ..] = head;
        let mut text = vec![0; (u32::from_le_bytes(length) as usize).min(MAX_TEXT)];
        (&self.0).read_exact(&mut text)?;
        let text = String::from_utf8_lossy(&text);
        match kind {
            NOTE => Ok(Some(Report::Note(text.into_owned()))),
            LINK => link::receive(&self.0).map(|link| Some(Report::Link(link))),
            TERMINAL => rights::receive_one(&self.0).map(|master| Some(Report::Terminal(master))),
            CHILD => Child::receive(&self.0).map(|child| Some(Report::Child(child))),
            READY => Ok(Some(Report::Ready)),
            FAILED => Ok(Error::decode(&text).map(Report::Failed)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Reports something worth a warning. The parent's end is gone only when this process is about to be.
    pub(super) fn note(&self, text: &str) {
        let _ = self.send(NOTE, text);
    }

    /// Hands the link over.
    pub(super) fn link(&self, link: &LinkFd) -> io::Result<()> {
        self.send(LINK, "")?;
        link::send(link, &self.0)
    }

    /// Hands the master of the command's terminal over.
    pub(super) fn terminal(&self, master: &OwnedFd) -> io::Result<()> {
        self.send(TERMINAL, "")?;
        rights::send_one(master, &self.0)
    }

    /// Hands a process over.
    pub(super) fn child(&self, child: &Child) -> io::Result<()> {
        self.send(CHILD, "")?;
        child.send(&self.0)
    }

    /// Reports that everything stands.
    pub(super) fn ready(&self) -> io::Result<()> {
        self.send(READY, "")
    }

    /// Reports the end.
    pub(super) fn failed(&self, error: &Error) {
        let _ = self.send(FAILED, &error.encode());
    }

    fn send(&self, kind: u8, text: &str) -> io::Result<()> {
        let text = &text.as_bytes()[..text.len().min(MAX_TEXT)];
        let length = u32::try_from(text.len()).unwrap_or_default();
        let mut frame = vec![kind];
        frame.extend(length.to_le_bytes());
        frame.extend(text);
        (&self.0).write_all(&frame)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_arrive_in_order_and_end_with_the_sender() {
        let (parent, child) = Channel::pair().expect("a socket pair");
        child.note("look");
        child.failed(&Error::new("cannot run", "sh", "not found").exit_code(127));
        drop(child);
        assert!(matches!(parent.receive(), Ok(Some(Report::Note(text))) if text == "look"));
        assert!(matches!(parent.receive(), Ok(Some(Report::Failed(error))) if error.code() == 127));
        assert!(matches!(parent.receive(), Ok(None)));
    }

    #[test]
    fn child_of_a_dead_parent_is_not_released() {
        let (parent, child) = Channel::pair().expect("a socket pair");
        parent.release().expect("written");
        assert!(child.await_release());
        drop(parent);
        assert!(!child.await_release());
    }
}
