//! rnet on a terminal: job control, Ctrl-C and the window's size, on that terminal or on one of the container's own.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use nix::unistd::Pid;

use crate::lab::{Host, Root, as_user};
use crate::process::{PATIENCE, wait_for, wait_within};

over_any_link![
    shell_has_job_control,
    ctrl_c_reaches_the_foreground_job_only,
    ctrl_c_ends_a_command_that_does_not_catch_it,
    window_size_is_the_terminals,
    resize_is_told,
    terminal_is_given_back,
    own_terminal_is_of_the_container,
    init_has_the_own_terminal,
    own_terminal_takes_every_key_and_gives_the_modes_back,
    own_terminal_is_given_back_while_rnet_is_stopped,
    own_terminal_of_a_background_job_waits_for_the_foreground,
    own_terminal_without_input_leaves_it_to_others,
    output_of_an_own_terminal_is_complete,
    own_terminal_can_be_typed_into_by_a_pipe,
    own_terminal_hangs_up_when_nobody_reads,
    own_terminal_in_the_background_is_in_the_log,
];

/// Options of `rnet run` for a command on the caller's terminal, and on one of its own.
const KINDS: [&[&str]; 2] = [&[], &["-it"]];

fn shell_has_job_control(host: &Host) {
    for options in KINDS {
        let mut terminal = Terminal::shell(host, options);
        terminal.type_line("sleep 1000 &");
        terminal.type_line("jobs");
        terminal.wait_for("sleep 1000\r\n");
        assert!(!terminal.text().contains("job control turned off"), "{}", terminal.text());
        // Said by the job itself, which is in the foreground by then.
        terminal.type_line("sh -c 'echo be$((1+1))gin; exec sleep 1001'");
        terminal.wait_for("be2gin");
        terminal.type_text("\x1a");
        terminal.wait_for("Stopped");
        terminal.type_line("exit");
        terminal.wait_for("stopped jobs");
        terminal.type_line("exit 3");
        assert_eq!(terminal.status(), 3);
    }
}

fn ctrl_c_reaches_the_foreground_job_only(host: &Host) {
    for options in KINDS {
        let mut terminal = Terminal::shell(host, options);
        terminal.type_line("sh -c 'echo be$((1+1))gin; exec sleep 1000'");
        terminal.wait_for("be2gin");
        terminal.type_text("\x03");
        terminal.type_line("echo still$((1+1))here after $?");
        terminal.wait_for("still2here after 130");
    }
}

fn ctrl_c_ends_a_command_that_does_not_catch_it(host: &Host) {
    for options in [&[][..], &["-t"], &["-it"], &["-it", "--init"]] {
        let mut terminal =
            Terminal::start(host, options, &["sh", "-c", "echo re$((1+1))ady; exec sleep 1000"]);
        terminal.wait_for("re2ady");
        terminal.type_text("\x03");
        assert_eq!(terminal.status(), 130, "{options:?}");
    }
}

fn window_size_is_the_terminals(host: &Host) {
    for options in [&[][..], &["-t"], &["-it"]] {
        let mut terminal = Terminal::start(host, options, &["stty", "size"]);
        terminal.wait_for("33 101");
        assert_eq!(terminal.status(), 0, "{options:?}");
    }
}

fn resize_is_told(host: &Host) {
    let line = "trap 'stty size' WINCH; echo re$((1+1))ady; while :; do sleep 0.05; done";
    for options in KINDS {
        let terminal = Terminal::start(host, options, &["sh", "-c", line]);
        terminal.wait_for("re2ady");
        terminal.stty(&["rows", "40", "cols", "90"]);
        terminal.wait_for("40 90");
    }
}

fn terminal_is_given_back(host: &Host) {
    for options in ["", "-it"] {
        let line =
            format!("/mnt/rnet run {options} {} true; read line; echo got $line", Root::Busybox.path());
        let mut terminal = Terminal::around(host, &["/bin/sh", "-c", &line]);
        // A background group would be stopped instead of reading. Early keys may have gone to the command.
        let got = wait_within(PATIENCE, || {
            terminal.type_line("through");
            terminal.text().contains("got through").then_some(())
        });
        assert!(got.is_some(), "{}", terminal.text());
    }
}

fn own_terminal_is_of_the_container(host: &Host) {
    let mut terminal = Terminal::shell(host, &["-it"]);
    terminal.type_line("tty; ls /dev/pts; [ /dev/console -ef /dev/pts/0 ] && echo sa$((1+1))e");
    terminal.wait_for("/dev/pts/0\r\n0     ptmx\r\nsa2e");
    terminal.type_line("echo console > /dev/console; echo tty > /dev/tty; ps -o pid,tty,args");
    terminal.wait_for("\nconsole\r\ntty\r\n");
    terminal.wait_for("1 136,0  sh");
    terminal.type_line("exit 3");
    assert_eq!(terminal.status(), 3);
}

fn init_has_the_own_terminal(host: &Host) {
    let mut terminal = Terminal::shell(host, &["-it", "--init"]);
    terminal.type_line("ps -o pid,tty,comm; sleep 1000 & jobs");
    terminal.wait_for("1 136,0  rnet-init");
    terminal.wait_for("Running");
    terminal.type_line("exit 3");
    assert_eq!(terminal.status(), 3);
}

fn own_terminal_takes_every_key_and_gives_the_modes_back(host: &Host) {
    for (line, status) in
        [("exec sleep 1000", 143), ("read line; exit 5", 5), ("read line; exec /nonexistent", 127)]
    {
        let mut terminal =
            Terminal::start(host, &["-it"], &["sh", "-c", &format!("echo re$((1+1))ady; {line}")]);
        terminal.wait_for("re2ady");
        assert!(terminal.is_raw(), "{line}");
        match status {
            143 => terminal.signal(Signal::SIGTERM),
            _ => terminal.type_line(""),
        }
        assert_eq!(terminal.status(), status, "{line}: {}", terminal.text());
        assert!(terminal.is_as_found(), "{line}");
    }
    let mut terminal = Terminal::start(host, &["-it"], &["/nonexistent"]);
    assert_eq!(terminal.status(), 127);
    assert!(terminal.is_as_found());
    terminal.wait_for("not found in the root filesystem");
}

fn own_terminal_is_given_back_while_rnet_is_stopped(host: &Host) {
    let mut terminal = Terminal::shell(host, &["-it"]);
    terminal.signal(Signal::SIGTSTP);
    wait_for("rnet to stop", || terminal.state().starts_with('T').then_some(()));
    assert!(terminal.is_as_found());
    terminal.stty(&["rows", "41", "cols", "91"]);
    terminal.signal(Signal::SIGCONT);
    wait_for("raw modes", || terminal.is_raw().then_some(()));
    terminal.type_line("stty size");
    terminal.wait_for("41 91");
}

fn own_terminal_of_a_background_job_waits_for_the_foreground(host: &Host) {
    let mut terminal = Terminal::around(host, &["/bin/sh", "-i"]);
    let root = Root::Busybox.path();
    terminal.type_line(&format!("/mnt/rnet run -it {root} sh -c 'stty size; read x; exit 4' &"));
    wait_for("rnet to stop", || {
        terminal.type_line("jobs");
        terminal.text().contains("Stopped").then_some(())
    });
    assert!(!terminal.text().contains("33 101"), "{}", terminal.text());
    terminal.type_line("fg; echo ended with $?");
    terminal.wait_for("33 101");
    terminal.type_line("");
    terminal.wait_for("ended with 4");
}

fn own_terminal_without_input_leaves_it_to_others(host: &Host) {
    let inside = "trap \"exit 6\" WINCH; echo re$((1+1))ady; while :; do sleep 0.05; done";
    let run = format!("/mnt/rnet run -t {} sh -c '{inside}'", Root::Busybox.path());
    let line = format!("{run}; echo ended with $?; read line; echo got $line");
    let mut terminal = Terminal::around(host, &["/bin/sh", "-c", &line]);
    terminal.wait_for("re2ady");
    assert!(!terminal.is_raw());
    terminal.type_line("for later");
    terminal.stty(&["rows", "40", "cols", "90"]);
    terminal.wait_for("ended with 6");
    terminal.wait_for("got for later");
}

fn output_of_an_own_terminal_is_complete(host: &Host) {
    let numbers: String = (1..=20_000).map(|number| format!("{number}\r\n")).collect();
    let outcome = host.run(&["-t"], Root::Busybox, &["seq", "20000"]);
    assert_eq!(outcome.success(), numbers);
    let mut terminal = Terminal::start(host, &["-it"], &["seq", "20000"]);
    assert_eq!(terminal.status(), 0);
    terminal.wait_for("\n20000\r\n");
    assert_eq!(terminal.text(), numbers);
}

fn own_terminal_can_be_typed_into_by_a_pipe(host: &Host) {
    let root = Root::Busybox.path();
    for (line, told) in [
        ("echo 'exit 7' | /mnt/rnet run -it ROOT sh; echo ended with $?", "ended with 7"),
        ("echo unfinished | tr -d '\\n' | /mnt/rnet run -it ROOT cat; echo ended with $?", "ended with 0"),
        ("/mnt/rnet run -it ROOT sh </dev/null; echo ended with $?", "ended with 0"),
        ("seq 3000 | /mnt/rnet run -it ROOT sh -c 'stty -echo; cat' | tail -n 1", "3000"),
    ] {
        let outcome = host.start_as_user(&["/bin/sh", "-c", &line.replace("ROOT", root)]).wait();
        assert!(outcome.stdout.contains(told), "{line}: {outcome:?}");
    }
}

fn own_terminal_hangs_up_when_nobody_reads(host: &Host) {
    let run = format!("/mnt/rnet run -t {} yes", Root::Busybox.path());
    let line = format!("{{ {run}; echo ended with $? >&2; }} | head -n 1");
    let outcome = host.start_as_user(&["/bin/sh", "-c", &line]).wait();
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("y\r\n", "ended with 129\n"));
}

fn own_terminal_in_the_background_is_in_the_log(host: &Host) {
    let line = "tty; echo to stderr >&2; seq 3000";
    host.run(&["-dt", "--name", "box"], Root::Busybox, &["sh", "-c", line]).success();
    assert_eq!(host.start_rnet(&["wait", "box"]).wait().success(), "0\n");
    let numbers: String = (1..=3000).map(|number| format!("{number}\r\n")).collect();
    let log = host.start_rnet(&["logs", "box"]).wait().success();
    assert_eq!(log, format!("/dev/pts/0\r\nto stderr\r\n{numbers}"));
    host.start_rnet(&["rm", "box"]).wait().success();
}

/// A terminal of 33 lines and 101 columns with rnet on it.
pub(crate) struct Terminal {
    master: File,
    slave: File,
    /// Its modes before anything ran.
    modes: Termios,
    child: Child,
    text: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn shell(host: &Host, options: &[&str]) -> Self {
        let terminal = Self::start(host, options, &["sh"]);
        terminal.wait_for("# ");
        terminal
    }

    fn start(host: &Host, options: &[&str], command: &[&str]) -> Self {
        Self::around(host, &[&["/mnt/rnet", "run"], options, &[Root::Busybox.path()], command].concat())
    }

    /// Makes the terminal and starts `argv` on it as the ordinary user, as its session's leader.
    pub(crate) fn around(host: &Host, argv: &[&str]) -> Self {
        let size = Winsize { ws_row: 33, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).expect("a pty to spare");
        let (master, slave) = (File::from(pty.master), File::from(pty.slave));
        for end in [&master, &slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("an open fd");
        }
        let modes = tcgetattr(&slave).expect("a terminal");
        let mut leader = as_user(&[&["/usr/bin/setsid", "--ctty"], argv].concat());
        let stream = || slave.try_clone().expect("an fd to spare");
        leader.stdin(stream()).stdout(stream()).stderr(stream());
        let child = host.space().within(move || leader.spawn()).expect("setsid (util-linux)");
        let text = Arc::new(Mutex::new(Vec::new()));
        collect(master.try_clone().expect("an fd to spare"), Arc::clone(&text));
        Self { master, slave, modes, child, text }
    }

    pub(crate) fn type_text(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("the terminal is open");
    }

    pub(crate) fn type_line(&mut self, line: &str) {
        self.type_text(&format!("{line}\n"));
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().expect("no panic while held")).into_owned()
    }

    pub(crate) fn wait_for(&self, text: &str) {
        let seen = wait_within(PATIENCE, || self.text().contains(text).then_some(()));
        assert!(seen.is_some(), "no {text:?} on the terminal: {}", self.text());
    }

    /// Changes the terminal from outside, as a terminal emulator would.
    pub(crate) fn stty(&self, args: &[&str]) {
        let slave = self.slave.try_clone().expect("an fd to spare");
        let status = Command::new("stty").args(args).stdin(slave).status();
        assert!(status.expect("stty (coreutils)").success());
    }

    pub(crate) fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.slave).expect("a terminal");
        !modes.local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
    }

    pub(crate) fn is_as_found(&self) -> bool {
        tcgetattr(&self.slave).expect("a terminal") == self.modes
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid fits"))
    }

    /// Signals the leader.
    fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("it is there");
    }

    /// The leader's state, as proc(5) has it.
    fn state(&self) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it is there");
        let state = status.lines().find_map(|line| line.strip_prefix("State:"));
        state.expect("a line of that name").trim().to_owned()
    }

    pub(crate) fn status(&mut self) -> i32 {
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
