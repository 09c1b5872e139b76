//! rnet on a terminal: job control, Ctrl-C and the window's size.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::{Winsize, openpty};

use crate::lab::{Host, Root, as_user};
use crate::process::{PATIENCE, wait_for, wait_within};

over_any_link![
    shell_has_job_control,
    ctrl_c_reaches_the_foreground_job_only,
    ctrl_c_ends_a_command_that_does_not_catch_it,
    window_size_is_the_terminals,
    resize_is_told,
    terminal_is_given_back,
];

fn shell_has_job_control(host: &Host) {
    let mut terminal = Terminal::shell(host);
    terminal.type_line("sleep 1000 &");
    terminal.type_line("jobs");
    terminal.wait_for("sleep 1000\r\n");
    assert!(!terminal.text().contains("job control turned off"), "{}", terminal.text());
    terminal.type_line("exit 3");
    assert_eq!(terminal.status(), 3);
}

fn ctrl_c_reaches_the_foreground_job_only(host: &Host) {
    let mut terminal = Terminal::shell(host);
    // Said by the job itself, which is in the foreground by then.
    terminal.type_line("sh -c 'echo be$((1+1))gin; exec sleep 1000'");
    terminal.wait_for("be2gin");
    terminal.type_text("\x03");
    terminal.type_line("echo still$((1+1))here");
    terminal.wait_for("still2here");
}

fn ctrl_c_ends_a_command_that_does_not_catch_it(host: &Host) {
    let mut terminal = Terminal::start(host, &["sh", "-c", "echo re$((1+1))ady; exec sleep 1000"]);
    terminal.wait_for("re2ady");
    terminal.type_text("\x03");
    assert_eq!(terminal.status(), 130);
}

fn window_size_is_the_terminals(host: &Host) {
    let mut terminal = Terminal::shell(host);
    terminal.type_line("stty size");
    terminal.wait_for("33 101");
}

fn resize_is_told(host: &Host) {
    let line = "trap 'stty size' WINCH; echo re$((1+1))ady; while :; do sleep 0.05; done";
    let terminal = Terminal::start(host, &["sh", "-c", line]);
    terminal.wait_for("re2ady");
    terminal.stty(&["rows", "40", "cols", "90"]);
    terminal.wait_for("40 90");
}

fn terminal_is_given_back(host: &Host) {
    let line = format!("/mnt/rnet run {} true; read line; echo got $line", Root::Busybox.path());
    let mut terminal = Terminal::around(host, &["/bin/sh", "-c", &line]);
    terminal.type_line("through");
    // A background group would be stopped instead of reading.
    terminal.wait_for("got through");
}

/// A terminal of 33 lines and 101 columns with rnet on it.
struct Terminal {
    master: File,
    slave: File,
    child: Child,
    text: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn shell(host: &Host) -> Self {
        let terminal = Self::start(host, &["sh"]);
        terminal.wait_for("# ");
        terminal
    }

    fn start(host: &Host, command: &[&str]) -> Self {
        Self::around(host, &[&["/mnt/rnet", "run", Root::Busybox.path()], command].concat())
    }

    /// Makes the terminal and starts `argv` on it as the ordinary user, as its session's leader.
    fn around(host: &Host, argv: &[&str]) -> Self {
        let size = Winsize { ws_row: 33, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).expect("a pty to spare");
        let (master, slave) = (File::from(pty.master), File::from(pty.slave));
        for end in [&master, &slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("an open fd");
        }
        let mut leader = as_user(&[&["/usr/bin/setsid", "--ctty"], argv].concat());
        let stream = || slave.try_clone().expect("an fd to spare");
        leader.stdin(stream()).stdout(stream()).stderr(stream());
        let child = host.space().within(move || leader.spawn()).expect("setsid (util-linux)");
        let text = Arc::new(Mutex::new(Vec::new()));
        collect(master.try_clone().expect("an fd to spare"), Arc::clone(&text));
        Self { master, slave, child, text }
    }

    fn type_text(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("the terminal is open");
    }

    fn type_line(&mut self, line: &str) {
        self.type_text(&format!("{line}\n"));
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().expect("no panic while held")).into_owned()
    }

    fn wait_for(&self, text: &str) {
        let seen = wait_within(PATIENCE, || self.text().contains(text).then_some(()));
        assert!(seen.is_some(), "no {text:?} on the terminal: {}", self.text());
    }

    /// Changes the terminal from outside, as a terminal emulator would.
    fn stty(&self, args: &[&str]) {
        let slave = self.slave.try_clone().expect("an fd to spare");
        let status = Command::new("stty").args(args).stdin(slave).status();
        assert!(status.expect("stty (coreutils)").success());
    }

    fn status(&mut self) -> i32 {
        let status = wait_for("rnet to end", || self.child.try_wait().expect("a child of ours"));
        status.code().unwrap_or_else(|| panic!("{status}: {}", self.text()))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads until the last slave is closed.
fn collect(mut master: File, text: Arc<Mutex<Vec<u8>>>) {
    thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(len @ 1..) = master.read(&mut chunk) {
            text.lock().expect("no panic while held").extend_from_slice(&chunk[..len]);
        }
    });
}
