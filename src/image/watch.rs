//! Somebody waits: a line that tells how far things are, and an ear for signals that ask to stop.
//!
//! While a [`Watch`] lives, the signals that would end rnet are taken in turn with the reading, so that what is half
//! done can be removed before it ends.

use std::env;
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::error::{Context, Error, Result};

/// Signals that ask to stop.
const ENDING: [Signal; 4] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];
/// How often the line changes.
const REDRAWN_EVERY: Duration = Duration::from_millis(100);
/// What takes less is over before anybody looks.
const SHOWN_AFTER: Duration = Duration::from_millis(300);
/// Widths that make a line of less than 80 characters.
const BAR_CHARS: usize = 20;
const NAME_CHARS: usize = 20;
/// Exit status of a command that a signal has ended, less the signal's number.
const SIGNALLED: u8 = 128;

/// Signals taken, and a line on the terminal.
pub(super) struct Watch {
    signals: SignalFd,
    before: SigSet,
    caught: Option<Signal>,
    bar: Option<Bar>,
}

/// A line that is written again and again.
struct Bar {
    text: String,
    total_bytes: u64,
    done_bytes: u64,
    /// When it may next be written.
    due: Instant,
    /// Something of it stands on the terminal.
    drawn: bool,
}

impl Watch {
    pub(super) fn begin() -> Result<Self> {
        let set: SigSet = ENDING.into_iter().collect();
        let mut before = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), Some(&mut before))
            .context("cannot block", "signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&set, flags).context("cannot create", "signalfd")?;
        Ok(Self { signals, before, caught: None, bar: None })
    }

    /// Tells from now on that `doing` is done to the file `path`, of which there are so many bytes; on a terminal only.
    pub(super) fn tell(&mut self, doing: &str, path: &Path, total_bytes: u64) {
        self.bar = None;
        if is_for_people() {
            let text = format!("rnet: {doing} {}", short_name(path));
            let due = Instant::now() + SHOWN_AFTER;
            self.bar = Some(Bar { text, total_bytes, done_bytes: 0, due, drawn: false });
        }
    }

    /// A reader of `input` that is watched.
    pub(super) fn over<R: Read>(&mut self, input: R) -> Watched<'_, R> {
        Watched { input, watch: self }
    }

    /// `error`, unless it came of a signal.
    pub(super) fn judge(&mut self, error: Error) -> Error {
        self.bar = None;
        match self.caught {
            None => error,
            Some(signal) => {
                let given_up = Error::new("gave up", "unpacking", format!("interrupted by {signal}"));
                given_up.exit_code(SIGNALLED + signal as u8)
            }
        }
    }

    /// Takes notice of `bytes` more.
    fn turn(&mut self, bytes: usize) -> io::Result<()> {
        if let Some(info) = self.signals.read_signal()? {
            let number = info.ssi_signo as i32;
            self.caught = ENDING.into_iter().find(|signal| *signal as i32 == number);
        }
        if self.caught.is_some() {
            // Not the kind `Interrupted`, after which everybody reads on.
            return Err(io::Error::other("interrupted"));
        }
        if let Some(bar) = &mut self.bar {
            bar.advance(bytes as u64);
        }
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.bar = None;
        let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&self.before), None);
    }
}

/// A reader under a [`Watch`].
pub(super) struct Watched<'a, R> {
    input: R,
    watch: &'a mut Watch,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.watch.turn(read)?;
        Ok(read)
    }
}

impl Bar {
    fn advance(&mut self, bytes: u64) {
        self.done_bytes += bytes;
        let now = Instant::now();
        if now >= self.due {
            self.due = now + REDRAWN_EVERY;
            self.drawn = true;
            write(&format!("\r{}\x1b[K", self.line()));
        }
    }

    fn line(&self) -> String {
        // 100 is for when it is over.
        let percent = (self.done_bytes.saturating_mul(100) / self.total_bytes.max(1)).min(99);
        let (filled, mebibytes) = (percent as usize * BAR_CHARS / 100, self.total_bytes.div_ceil(1 << 20));
        let (full, empty) = ("#".repeat(filled), "-".repeat(BAR_CHARS - filled));
        format!("{} [{full}{empty}] {percent} % of {mebibytes} MiB", self.text)
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if self.drawn {
            write("\r\x1b[K");
        }
    }
}

/// Whether somebody looks at standard error who has not asked for silence.
fn is_for_people() -> bool {
    let dumb = env::var_os("TERM").is_none_or(|term| term == "dumb");
    !dumb && io::stderr().is_terminal() && tracing::enabled!(tracing::Level::WARN)
}

fn write(text: &str) {
    // Who cannot be told is not missed.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// The end of a path, without what would steer a terminal, and not so long that a line would wrap.
fn short_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    name.chars().filter(|character| !character.is_control()).take(NAME_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_tells_how_far_it_is() {
        let mut bar = Bar {
            text: "rnet: unpacking a.tar".into(),
            total_bytes: 200 << 20,
            done_bytes: 0,
            due: Instant::now() + Duration::from_secs(3600),
            drawn: false,
        };
        bar.advance(50 << 20);
        assert_eq!(bar.line(), "rnet: unpacking a.tar [#####---------------] 25 % of 200 MiB");
        bar.advance(500 << 20);
        assert_eq!(bar.line(), "rnet: unpacking a.tar [###################-] 99 % of 200 MiB");
        assert!(!bar.drawn);
    }

    #[test]
    fn names_neither_steer_the_terminal_nor_fill_it() {
        assert_eq!(short_name(Path::new("/x/a\x1b[2J\r\nb")), "a[2Jb");
        assert_eq!(short_name(Path::new(&"long".repeat(10))), "longlonglonglonglong");
    }
}
