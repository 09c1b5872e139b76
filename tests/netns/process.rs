//! Programs started inside a space: their output is collected, their end awaited with a deadline.

use std::fmt;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::is_verbose;
use crate::space::Space;

/// How long anything may take before a test gives up on it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);
/// How long output may follow the end of the process that wrote it.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Polls `condition` until it gives a value; panics with `what` after [`PATIENCE`].
pub(crate) fn wait_for<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    wait_within(PATIENCE, condition).unwrap_or_else(|| panic!("waited {PATIENCE:?} for {what}"))
}

/// Polls `condition` until it gives a value or `limit` has passed.
pub(crate) fn wait_within<T>(limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(POLL);
    }
}

/// A running program. Killed when dropped.
pub(crate) struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Collected,
    stderr: Collected,
}

/// How a program ended and what it wrote.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Process {
    /// Starts `command` in `space` with all three standard streams as pipes.
    pub(crate) fn start(space: &Space, mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = space
            .within(move || command.spawn().map_err(|error| format!("{command:?}: {error}")))
            .expect("the program starts");
        Self {
            stdin: child.stdin.take(),
            stdout: Collected::from(child.stdout.take().expect("piped")),
            stderr: Collected::from(child.stderr.take().expect("piped")),
            child,
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid fits")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("the process is there");
    }

    pub(crate) fn stdout(&self) -> String {
        self.stdout.text()
    }

    pub(crate) fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Writes to the program's standard input.
    pub(crate) fn write(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("not closed yet");
        stdin.write_all(text.as_bytes()).expect("the program reads");
    }

    /// Ends the program's standard input.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits until standard output contains `text`; fails at once if the program ends without it.
    pub(crate) fn wait_for_output(&mut self, text: &str) {
        wait_for(&format!("{text:?} from the guest"), || {
            if self.stdout().contains(text) {
                return Some(());
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                thread::sleep(POLL * 10);
                assert!(
                    self.stdout().contains(text),
                    "ended ({status}) before {text:?}\nstdout: {}\nstderr: {}",
                    self.stdout(),
                    self.stderr()
                );
            }
            None
        });
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Waits for the end; panics with what was written so far after [`PATIENCE`].
    pub(crate) fn wait(self) -> Outcome {
        self.wait_at_most(PATIENCE)
    }

    /// As [`Process::wait`], with another limit.
    pub(crate) fn wait_at_most(mut self, limit: Duration) -> Outcome {
        self.stdin = None;
        let status = wait_within(limit, || self.child.try_wait().expect("a child of ours"));
        let Some(status) = status else {
            panic!("still running after {limit:?}\nstdout: {}\nstderr: {}", self.stdout(), self.stderr());
        };
        wait_within(LAST_WORDS, || (self.stdout.is_complete() && self.stderr.is_complete()).then_some(()));
        Outcome { status, stdout: self.stdout(), stderr: self.stderr() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if is_verbose() {
            eprintln!("{}", self.stderr());
        }
    }
}

impl Outcome {
    /// The exit status; a death by signal is a failure of the test.
    pub(crate) fn code(&self) -> i32 {
        assert!(self.status.signal().is_none(), "killed by a signal: {self}");
        self.status.code().expect("exited")
    }

    /// Standard output of a program that ended well.
    pub(crate) fn success(self) -> String {
        assert!(self.status.success(), "failed: {self}");
        self.stdout
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nstdout: {}\nstderr: {}", self.status, self.stdout, self.stderr)
    }
}

/// Everything a stream has carried so far.
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Collected {
    fn from(mut source: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&bytes);
        let reader = thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(len @ 1..) = source.read(&mut chunk) {
                sink.lock().expect("no panic while held").extend_from_slice(&chunk[..len]);
            }
        });
        Self { bytes, reader }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().expect("no panic while held")).into_owned()
    }

    fn is_complete(&self) -> bool {
        self.reader.is_finished()
    }
}

/// Every descendant of `pid` that is alive, itself not included.
pub(crate) fn descendants(pid: i32) -> Vec<i32> {
    let parents: Vec<(i32, i32)> = processes().filter_map(|pid| Some((pid, stat(pid)?.1))).collect();
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.split_off(1)
}

/// Whether `pid` runs; a zombie that nobody has reaped yet does not.
pub(crate) fn is_alive(pid: i32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z' && state != 'X')
}

/// Number of open file descriptors of `pid`.
pub(crate) fn open_fds(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").expect("proc is mounted");
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// State and parent of a process, from `/proc/PID/stat` (proc_pid_stat(5)).
fn stat(pid: i32) -> Option<(char, i32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}
