//! What other threads may ask of the one that waits for the container's end.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use crate::error::{Context, Error, Result};

/// How long the answer is waited for: the container's thread is stopped if rnet is.
const PATIENCE: Duration = Duration::from_secs(5);
/// Wakes that are taken at once; more are left for the next turn.
const MAX_WAKES: usize = 64;

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Send the command this signal, or do what its default action would.
    Signal {
        /// Its number.
        number: i32,
        /// The command is not to be started again when it ends.
        last: bool,
    },
    /// Have its processes stand still, or go on.
    Pause(bool),
}

/// Asks. Clones ask the same container.
#[derive(Clone, Debug)]
pub struct Commands {
    queue: Sender<Asked>,
    bell: Arc<PipeWriter>,
}

/// A command, and where its outcome goes.
pub(super) type Asked = (Command, SyncSender<Result<()>>);

/// The end of whoever is asked.
#[derive(Debug)]
pub(super) struct Inbox {
    queue: Receiver<Asked>,
    bell: PipeReader,
}

/// Both ends.
pub(super) fn line() -> Result<(Commands, Inbox)> {
    let (queue, asked) = channel();
    let (ring, bell) =
        io::pipe().context("cannot create", "a pipe").map(|(reader, writer)| (writer, reader))?;
    Ok((Commands { queue, bell: Arc::new(ring) }, Inbox { queue: asked, bell }))
}

impl Commands {
    /// Has the container's thread do it; its outcome.
    pub fn ask(&self, command: Command) -> Result<()> {
        let gone = |cause: &str| Error::new("cannot reach", "the container", cause);
        let (answer, answered) = sync_channel(1);
        self.queue.send((command, answer)).map_err(|_| gone("it has ended"))?;
        (&*self.bell).write_all(&[0]).map_err(|_| gone("it has ended"))?;
        answered.recv_timeout(PATIENCE).map_err(|_| gone("it ends, or is stopped"))?
    }
}

impl Inbox {
    /// What has been asked since; to be called when it is readable.
    pub(super) fn take(&mut self) -> impl Iterator<Item = Asked> {
        // A closed pipe is readable for ever, but then nobody asks and nobody waits either.
        let _ = self.bell.read(&mut [0; MAX_WAKES]);
        let queue = &self.queue;
        std::iter::from_fn(|| queue.try_recv().ok())
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_answered() {
        let (commands, mut inbox) = line().expect("a pipe");
        let asked = Command::Signal { number: 15, last: true };
        let asker = std::thread::spawn(move || commands.ask(asked));
        // The bell rings when the command is in the queue.
        let (command, answer) = inbox.take().next().expect("asked");
        assert_eq!(command, asked);
        answer.send(Ok(())).expect("it waits");
        asker.join().expect("no panic").expect("it was done");
    }

    #[test]
    fn nobody_waits_for_one_that_has_ended() {
        let (commands, inbox) = line().expect("a pipe");
        drop(inbox);
        let error = commands.ask(Command::Signal { number: 15, last: false }).expect_err("nobody there");
        assert!(error.to_string().contains("it has ended"), "{error}");
    }
}
