//! What bubblewrap tells about its sandbox (bwrap(1), `--info-fd`).

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use serde_json::{Value, from_slice};

use super::vigil::Signals;
use crate::error::{Context, Error, Result};

/// Longest text that is read, in bytes; bubblewrap writes some two hundred.
const MAX_INFO_BYTES: usize = 16 * 1024;

/// The process id of the sandbox, as soon as `info` has told it. The other end need not be closed. A signal ends the
/// wait.
pub(super) fn child(info: OwnedFd, signals: &Signals) -> Result<i32> {
    const WHAT: &str = "bubblewrap's --info-fd";
    let mut info = File::from(info);
    let mut text = Vec::new();
    let mut chunk = [0; 1024];
    while text.len() < MAX_INFO_BYTES {
        signals.wait_beside(&info, WHAT)?;
        let len = info.read(&mut chunk).context("cannot read", WHAT)?;
        text.extend_from_slice(&chunk[..len]);
        match from_slice::<Value>(&text) {
            Ok(value) => {
                return pid(&value).ok_or_else(|| Error::new("cannot read", WHAT, "it names no child-pid"));
            }
            Err(error) if !error.is_eof() => return Err(Error::new("cannot read", WHAT, error)),
            Err(_) if len == 0 => break,
            Err(_) => {}
        }
    }
    Err(Error::new("cannot read", WHAT, "it ends too early")
        .hint("bubblewrap may have failed; its own message tells"))
}

fn pid(value: &Value) -> Option<i32> {
    let pid = i32::try_from(value.get("child-pid")?.as_i64()?).ok()?;
    (pid > 0).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{Signal, raise};
    use std::io::{PipeReader, Write, pipe};
    use std::thread;

    #[test]
    fn the_pid_is_known_before_the_pipe_is_closed() {
        assert_eq!(
            told("{\n    \"child-pid\": 4711,\n    \"net-namespace\": 4026532281\n}\n").ok(),
            Some(4711)
        );
    }

    #[test]
    fn what_names_no_process_is_an_error() {
        for (text, cause) in
            [("{}", "no child-pid"), ("{\"child-pid\": 0}", "no child-pid"), ("nonsense", "expected")]
        {
            let error = told(text).expect_err("no pid").to_string();
            assert!(error.contains(cause), "{error}");
        }
    }

    #[test]
    fn a_pipe_that_closes_without_a_word_is_an_error() {
        let (reader, writer) = pipe().expect("a pipe");
        drop(writer);
        assert!(hear(reader).expect_err("nothing").to_string().contains("too early"));
    }

    #[test]
    fn a_signal_ends_the_wait() {
        let (reader, _writer) = pipe().expect("a pipe");
        let waits = thread::spawn(|| {
            let signals = Signals::take()?;
            raise(Signal::SIGTERM).context("cannot raise", "a signal")?;
            child(reader.into(), &signals)
        });
        let error = waits.join().expect("no panic").expect_err("nothing was said").to_string();
        assert!(error.contains("a signal came first"), "{error}");
    }

    /// What is understood of `text` while the other end stays open.
    fn told(text: &str) -> Result<i32> {
        let (reader, mut writer) = pipe().expect("a pipe");
        writer.write_all(text.as_bytes()).expect("room");
        let pid = hear(reader);
        drop(writer);
        pid
    }

    /// Signals are those of a thread of its own.
    fn hear(info: PipeReader) -> Result<i32> {
        thread::spawn(|| child(info.into(), &Signals::take()?)).join().expect("no panic")
    }
}
