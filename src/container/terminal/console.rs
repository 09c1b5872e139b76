//! A terminal of the command's own, seen from its master: what is typed goes in, what is printed comes out.
//!
//! Nothing is read before what was read last has been written, so whoever is slow slows the other end, and no more
//! than one chunk waits in each direction. Who pumps also waits for signals and the command's end; no thread is needed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libc::c_int;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{LocalFlags, SpecialCharacterIndices, tcgetattr};
use nix::unistd::{Pid, tcgetpgrp};

use super::Terminal;
use super::stream::{Chunk, Stream};
use crate::error::{Context, Result};
use crate::sys::pty;

/// A terminal has no lasting end of input, only a key for it that one reader swallows. So once the input has ended, the
/// key is typed again whenever nothing else is left to be read; this is how often that is looked for.
const END_CHECK_MS: u16 = 100;
/// What a terminal may hold of what the command has printed: more than the kernel's buffers do.
const LEFT_BEHIND_BYTES: usize = 128 * 1024;

/// The container's terminal, joined with rnet's standard streams.
#[derive(Debug)]
pub(in super::super) struct Console {
    master: OwnedFd,
    /// Keeps the terminal from hanging up while nobody inside has it open.
    slave: OwnedFd,
    caller: Option<Terminal>,
    /// Whether the caller's terminal is where input comes from.
    keys: bool,
    input: Input,
    /// `None` once it takes no more.
    output: Option<Stream>,
    typed: Chunk,
    printed: Chunk,
}

/// Where input comes from.
#[derive(Debug)]
enum Input {
    /// Nowhere.
    None,
    Open(Stream),
    /// There was some.
    Ended,
}

/// What the user asks for by the terminal, and the command may have to be told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Key {
    /// The terminal sends this signal to its foreground group.
    Signal(c_int),
    /// Nobody reads what is printed any more.
    HungUp,
}

/// What a poll has found.
#[derive(Debug)]
struct Ready<const N: usize> {
    others: [bool; N],
    master: bool,
    input: bool,
    output: bool,
}

impl Console {
    /// The terminal behind `master`; standard input is typed into it if it is `interactive`. `caller` is the terminal
    /// whose size it gets.
    pub(in super::super) fn new(
        master: OwnedFd,
        interactive: bool,
        caller: Option<Terminal>,
    ) -> io::Result<Self> {
        let (stdin, stdout) = (io::stdin(), io::stdout());
        let input = match interactive {
            true => Input::Open(Stream::new(&stdin, OFlag::O_RDONLY)?),
            false => Input::None,
        };
        Ok(Self {
            slave: pty::slave(&master)?,
            keys: interactive && tcgetattr(&stdin).is_ok(),
            caller,
            input,
            output: Some(Stream::new(&stdout, OFlag::O_WRONLY)?),
            typed: Chunk::new(),
            printed: Chunk::new(),
            master,
        })
    }

    /// Takes the caller's terminal over, at the start and whenever rnet goes on after a stop.
    pub(in super::super) fn take_over(&mut self) {
        self.resize();
        if self.keys
            && let Some(caller) = &mut self.caller
        {
            caller.make_raw();
        }
    }

    /// Gives the caller's terminal back.
    pub(in super::super) fn give_back(&self) {
        if let Some(caller) = &self.caller {
            caller.restore();
        }
    }

    /// Takes on the size of the caller's terminal.
    pub(in super::super) fn resize(&self) {
        if let Some(size) = self.caller.as_ref().and_then(Terminal::size) {
            let _ = pty::set_size(&self.master, &size);
        }
    }

    /// The process group in its foreground.
    pub(in super::super) fn foreground(&self) -> Option<Pid> {
        tcgetpgrp(&self.master).ok()
    }

    /// Pumps until one of `others` is readable or closed, which the flags tell, or the user asks for something.
    pub(in super::super) fn pump_until<const N: usize>(
        &mut self,
        others: [&dyn AsFd; N],
    ) -> Result<([bool; N], Option<Key>)> {
        loop {
            let ready = self.poll(others.map(AsFd::as_fd))?;
            let key = self.pump(&ready);
            if key.is_some() || ready.others.contains(&true) {
                return Ok((ready.others, key));
            }
        }
    }

    /// Prints what the command has left behind, until `interrupted` says that nobody wants to wait for it; that is asked
    /// whenever `signals` is readable.
    pub(in super::super) fn finish(
        &mut self,
        signals: &dyn AsFd,
        mut interrupted: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        self.input = Input::None;
        self.typed.clear();
        let mut left = LEFT_BEHIND_BYTES;
        loop {
            if self.printed.is_empty() {
                // Others who have the terminal open may go on, but what was there is read by then.
                if left == 0 || !self.read_master() {
                    return Ok(());
                }
                left = left.saturating_sub(self.printed.len());
            }
            self.print(false);
            if !self.printed.is_empty() {
                let ready = self.poll([signals.as_fd()])?;
                if ready.others[0] && interrupted()? {
                    return Ok(());
                }
                self.print(ready.output);
            }
        }
    }

    /// Polls what there is something to do with, and `others`.
    fn poll<const N: usize>(&self, others: [BorrowedFd<'_>; N]) -> Result<Ready<N>> {
        let mut polled: Vec<PollFd<'_>> =
            others.into_iter().map(|other| PollFd::new(other, PollFlags::POLLIN)).collect();
        let wanted = self.wanted();
        let [master, input, output] = [0, 1, 2].map(|end: usize| wanted[end].is_some());
        polled.extend(wanted.into_iter().flatten());
        let timeout = match self.input {
            Input::Ended => PollTimeout::from(END_CHECK_MS),
            Input::None | Input::Open(_) => PollTimeout::NONE,
        };
        match poll(&mut polled, timeout) {
            Err(Errno::EINTR) => {}
            done => {
                done.context("cannot wait for", "the command's terminal")?;
            }
        }
        let mut found = polled.iter().map(|fd| fd.any().unwrap_or(false));
        let mut next = |polled: bool| polled && found.next().unwrap_or(false);
        Ok(Ready {
            others: [true; N].map(&mut next),
            master: next(master),
            input: next(input),
            output: next(output),
        })
    }

    /// Master, input and output, each if something can be done with it: an end that was closed counts as ready always.
    fn wanted(&self) -> [Option<PollFd<'_>>; 3] {
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLIN, self.printed.is_empty());
        events.set(PollFlags::POLLOUT, !self.typed.is_empty());
        let master = (!events.is_empty()).then(|| PollFd::new(self.master.as_fd(), events));
        let input = match &self.input {
            Input::Open(stream) if self.typed.is_empty() => {
                Some(PollFd::new(stream.as_fd(), PollFlags::POLLIN))
            }
            _ => None,
        };
        let output = match &self.output {
            Some(stream) if !self.printed.is_empty() => Some(PollFd::new(stream.as_fd(), PollFlags::POLLOUT)),
            _ => None,
        };
        [master, input, output]
    }

    fn pump<const N: usize>(&mut self, ready: &Ready<N>) -> Option<Key> {
        if ready.input {
            self.read_input();
        }
        self.type_end();
        let key = self.type_in();
        if ready.master && self.printed.is_empty() {
            self.read_master();
        }
        let hung_up = self.print(ready.output).then_some(Key::HungUp);
        key.or(hung_up)
    }

    fn read_input(&mut self) {
        if let Input::Open(stream) = &self.input {
            match self.typed.fill(stream) {
                Ok(1..) | Err(Errno::EAGAIN | Errno::EINTR) => {}
                // EIO from a terminal that was hung up, too.
                Ok(0) | Err(_) => self.input = Input::Ended,
            }
        }
    }

    /// Types the key for the end of input, if it has ended and what was typed before has been read.
    fn type_end(&mut self) {
        if !matches!(self.input, Input::Ended) || !self.typed.is_empty() || is_readable(&self.slave) {
            return;
        }
        if let Ok(modes) = tcgetattr(&self.master) {
            self.typed.put(modes.control_chars[SpecialCharacterIndices::VEOF as usize]);
        }
    }

    /// Writes what was typed; the key in it that means a signal.
    fn type_in(&mut self) -> Option<Key> {
        if self.typed.is_empty() {
            return None;
        }
        // Before the write: a command that gets the key may end, or change them.
        let modes = tcgetattr(&self.master).ok()?;
        let taken = match self.typed.write(&self.master, false) {
            Ok(taken) => taken,
            Err(Errno::EAGAIN | Errno::EINTR) => return None,
            Err(_) => {
                self.typed.clear();
                return None;
            }
        };
        if !modes.local_flags.contains(LocalFlags::ISIG) {
            return None;
        }
        let typed = |key: SpecialCharacterIndices| taken.contains(&modes.control_chars[key as usize]);
        if typed(SpecialCharacterIndices::VINTR) {
            Some(Key::Signal(libc::SIGINT))
        } else {
            typed(SpecialCharacterIndices::VQUIT).then_some(Key::Signal(libc::SIGQUIT))
        }
    }

    /// False if there is nothing to read.
    fn read_master(&mut self) -> bool {
        matches!(self.printed.fill(&self.master), Ok(1..) | Err(Errno::EINTR))
    }

    /// Writes what was printed, if that need not wait. True if the output has just been closed; from then on what is
    /// printed is lost.
    fn print(&mut self, ready: bool) -> bool {
        let Some(output) = &self.output else {
            self.printed.clear();
            return false;
        };
        if self.printed.is_empty() || (output.waits() && !ready) {
            return false;
        }
        match self.printed.write(output, output.waits()) {
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => false,
            Err(_) => {
                self.output = None;
                self.printed.clear();
                true
            }
        }
    }
}

fn is_readable(fd: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
