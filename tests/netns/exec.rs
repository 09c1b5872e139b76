//! Further commands in a container that runs.

use nix::sys::signal::Signal;

use crate::lab::{Host, Root};
use crate::process::{Outcome, Process, wait_for};
use crate::terminal::Terminal;

over_any_link![
    a_further_command_has_what_the_first_has,
    what_is_asked_for_differs,
    a_user_who_is_not_mapped_is_refused,
    streams_and_exit_status_are_the_commands,
    only_a_container_that_runs_is_entered,
    networks_of_every_kind_are_entered,
    signals_are_passed_on,
    it_ends_with_its_rnet,
    it_ends_with_the_container,
    in_the_background_it_goes_on,
    terminal_is_of_the_container,
    terminal_has_job_control,
];

/// Says what a process has of its surroundings, but for its number.
const FACTS: &str = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|Umask)' /proc/self/status; cat /proc/self/limits; \
                     cat /proc/self/cgroup; ls -l /proc/self/ns | sed 's/.* //'; env | grep -v SHLVL | sort; pwd; hostname";

fn a_further_command_has_what_the_first_has(host: &Host) {
    for options in [
        &["-e", "COLOUR=green", "-w", "/bin", "--ulimit", "nofile=100:200"][..],
        &["--cap-drop", "ALL", "--cap-add", "CHOWN", "--security-opt", "no-new-privileges=false"],
        &["--privileged"],
    ] {
        let line = format!("{FACTS}; echo up; cat");
        let options = [&["--rm", "--name", "box"], options].concat();
        let mut guest = host.start(&options, Root::Busybox, &["sh", "-c", &line]);
        guest.wait_for_output("\nup\n");
        let first = guest.stdout().replace("\nup\n", "\n");
        let further = exec(host, &["box", "sh", "-c", FACTS]).success();
        assert_eq!(further, first, "{options:?}");
        assert!(first.contains("CapEff:"), "{first}");
        assert_eq!(guest.wait().code(), 0);
    }
}

fn what_is_asked_for_differs(host: &Host) {
    let _guest = container(host, &["-e", "A=1", "-e", "B=1", "-w", "/bin"]);
    let line = "echo $A $B $C; pwd";
    assert_eq!(exec(host, &["box", "sh", "-c", line]).success(), "1 1\n/bin\n");
    let options = ["-w", "/tmp", "-e", "B=2", "-e", "C=3", "box", "sh", "-c", line];
    assert_eq!(exec(host, &options).success(), "1 2 3\n/tmp\n");
    assert_eq!(exec(host, &["-u", "root", "box", "sh", "-c", "echo $HOME; id -u"]).success(), "/\n0\n");
}

fn a_user_who_is_not_mapped_is_refused(host: &Host) {
    let _guest = container(host, &[]);
    let outcome = exec(host, &["-u", "5", "box", "true"]);
    assert_eq!(outcome.code(), 125);
    assert!(outcome.stderr.contains("the user id 5 does not exist in this container"), "{outcome:?}");
}

fn streams_and_exit_status_are_the_commands(host: &Host) {
    let _guest = container(host, &[]);
    for (command, status) in [
        (&["sh", "-c", "exit 7"][..], 7),
        (&["sh", "-c", "kill -9 $$"], 137),
        (&["/no/such"], 127),
        (&["no-such"], 127),
        (&["/bin"], 126),
        (&["--", "true"], 0),
    ] {
        assert_eq!(exec(host, &[&["box"], command].concat()).code(), status, "{command:?}");
    }
    assert_eq!(exec(host, &["-w", "/no/such", "box", "true"]).code(), 125);
    let mut cat = start(host, &["-i", "box", "sh", "-c", "echo err >&2; cat"]);
    cat.write("in");
    let outcome = cat.wait();
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("in", "err\n"));
}

fn only_a_container_that_runs_is_entered(host: &Host) {
    assert_eq!(exec(host, &["box", "true"]).code(), 125);
    let guest = container(host, &[]);
    assert_eq!(exec(host, &["box", "true"]).code(), 0);
    guest.signal(Signal::SIGKILL);
    assert!(!guest.wait().status.success());
    let outcome = exec(host, &["box", "true"]);
    assert_eq!(outcome.code(), 125);
    assert!(outcome.stderr.starts_with("rnet: error: "), "{outcome:?}");
}

fn networks_of_every_kind_are_entered(host: &Host) {
    let _first = container(host, &[]);
    let interfaces = |name| {
        let line = "cd /sys/class/net; echo *";
        exec(host, &[name, "sh", "-c", line]).success()
    };
    assert_eq!(interfaces("box"), "lo tap0\n");
    for (mode, seen) in [("none", "lo\n"), ("container:box", "lo tap0\n"), ("host", "eth0 ")] {
        let options = ["--rm", "--name", "other", "--net", mode];
        let mut other = host.start(&options, Root::Busybox, &["sh", "-c", "echo up; cat"]);
        other.wait_for_output("up");
        assert!(interfaces("other").starts_with(seen), "{mode}: {}", interfaces("other"));
        assert_eq!(other.wait().code(), 0);
    }
}

fn signals_are_passed_on(host: &Host) {
    let _guest = container(host, &[]);
    let line = "trap 'echo got; exit 9' USR1; echo up; while :; do sleep 0.05; done";
    let mut command = start(host, &["box", "sh", "-c", line]);
    command.wait_for_output("up");
    command.signal(Signal::SIGUSR1);
    assert_eq!(command.wait().code(), 9);
    let mut command = start(host, &["box", "sh", "-c", "echo up; exec sleep 1000"]);
    command.wait_for_output("up");
    command.signal(Signal::SIGTERM);
    assert_eq!(command.wait().code(), 143);
}

fn it_ends_with_its_rnet(host: &Host) {
    let _guest = container(host, &[]);
    for options in [&[][..], &["-t"]] {
        let words = [options, &["box", "sh", "-c", "echo up; exec sleep 1001"]].concat();
        let mut command = start(host, &words);
        command.wait_for_output("up");
        assert!(is_running(host, "sleep 1001"));
        command.signal(Signal::SIGKILL);
        wait_for("the command's end", || (!is_running(host, "sleep 1001")).then_some(()));
    }
}

fn it_ends_with_the_container(host: &Host) {
    let guest = container(host, &[]);
    let mut command =
        start(host, &["box", "sh", "-c", "trap '' TERM HUP INT; echo up; while :; do sleep 1; done"]);
    command.wait_for_output("up");
    assert_eq!(guest.wait().code(), 0);
    assert_eq!(command.wait().code(), 137);
}

fn in_the_background_it_goes_on(host: &Host) {
    let _guest = container(host, &[]);
    for (options, seconds) in [("-d", "1002"), ("-dt", "1003"), ("-dit", "1004")] {
        let outcome = exec(host, &[options, "box", "sleep", seconds]);
        assert_eq!(outcome.success(), "", "{options}");
        assert!(is_running(host, &format!("sleep {seconds}")), "{options}");
    }
    assert_eq!(exec(host, &["-d", "box", "no-such"]).code(), 127);
    let line = "head -c 200000 /dev/zero; tty; sh -c 'read x </dev/tty'; echo $? >/tmp/done";
    exec(host, &["-dt", "box", "sh", "-c", line]).success();
    wait_for("the end of a command that prints", || is_running(host, "read x").then_some(()));
}

fn terminal_is_of_the_container(host: &Host) {
    let _guest = container(host, &[]);
    let line = "tty; stty size; trap 'stty size' WINCH; echo re$((1+1))ady; while :; do sleep 0.05; done";
    let mut terminal = on_terminal(host, &["-it", "box", "sh", "-c", line]);
    terminal.wait_for("/dev/pts/0\r\n33 101\r\nre2ady");
    assert!(terminal.is_raw());
    terminal.stty(&["rows", "40", "cols", "90"]);
    terminal.wait_for("40 90");
    let mut second = on_terminal(host, &["-it", "box", "sh", "-c", "tty; ps -o tty,args | grep sle[e]p"]);
    second.wait_for("/dev/pts/1\r\n136,0");
    assert_eq!(second.status(), 0);
    assert!(second.is_as_found());
    terminal.type_text("\x03");
    assert_eq!(terminal.status(), 130);
    assert!(terminal.is_as_found());
}

fn terminal_has_job_control(host: &Host) {
    let _guest = container(host, &[]);
    let mut terminal = on_terminal(host, &["-it", "-e", "X=5", "box", "sh"]);
    terminal.wait_for("# ");
    terminal.type_line("sh -c 'echo be$((1+1))gin; exec sleep 1000'");
    terminal.wait_for("be2gin");
    terminal.type_text("\x1a");
    terminal.wait_for("Stopped");
    terminal.type_line("echo $TERM $X; exit");
    terminal.wait_for("xterm 5");
    terminal.wait_for("stopped jobs");
    terminal.type_line("exit 3");
    assert_eq!(terminal.status(), 3);
}

/// A container called `box` that runs until its input ends.
fn container(host: &Host, options: &[&str]) -> Process {
    let options = [&["--rm", "--name", "box"], options].concat();
    let mut guest = host.start(&options, Root::Busybox, &["sh", "-c", "echo up; cat"]);
    guest.wait_for_output("up");
    guest
}

fn start(host: &Host, words: &[&str]) -> Process {
    host.start_rnet(&[&["exec"], words].concat())
}

fn exec(host: &Host, words: &[&str]) -> Outcome {
    start(host, words).wait()
}

fn on_terminal(host: &Host, words: &[&str]) -> Terminal {
    Terminal::around(host, &[&["/mnt/rnet", "exec"], words].concat())
}

/// Whether the container has a process whose command line contains `words`.
fn is_running(host: &Host, words: &str) -> bool {
    exec(host, &["box", "ps", "-o", "args"]).success().contains(words)
}
