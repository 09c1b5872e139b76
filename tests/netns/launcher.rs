//! The container: what the command sees of the kernel, how it ends and how it is ended.

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::lab::{Host, Root, skip};
use crate::process::{Process, descendants, is_alive, wait_for};

over_links![main_job];
over_any_link![
    is_root_and_pid_one_among_its_own,
    its_own_program_is_out_of_reach,
    its_init_tells_nothing_of_the_host,
    sees_no_ipc_and_sets_its_hostname,
    status_is_that_of_the_command,
    status_tells_why_a_command_did_not_start,
    status_tells_the_signal,
    failure_of_rnet_is_125,
    failure_tells_the_remedy,
    full_standard_error_does_not_end_it,
    interrupt_ends_a_command_that_does_not_catch_it,
    terminate_ends_a_command_that_does_not_catch_it,
    caught_signal_reaches_the_command,
    init_reaps_and_passes_the_status,
    init_passes_signals,
    nothing_outlives_the_command,
    nothing_outlives_a_killed_rnet,
    port_is_free_after_a_kill,
    runs_inside_itself,
    system_calls_are_dockers,
    system_calls_of_the_machine_are_refused,
    confinement_shows_inside_and_outside,
    threads_that_serve_are_confined,
    forbidden_user_namespaces_are_explained,
    streams_stay_apart,
    inherits_no_file_of_rnet,
    inherits_no_key_of_the_caller,
    starts_with_signals_as_they_are_at_birth,
];

fn main_job(host: &Host) {
    let mut nc = host.start(&["-p", "8080:8080"], Root::Busybox, &["nc", "-l", "-p", "8080"]);
    wait_for("Hi", || {
        // Refused until nc listens; the first connection that stands is the only one.
        if let Ok(mut client) = host.dial(([127, 0, 0, 1], 8080)) {
            let _ = client.write_all(b"Hi\n");
        }
        (nc.stdout() == "Hi\n" || nc.has_ended()).then_some(())
    });
    let outcome = nc.wait();
    assert_eq!((outcome.code(), outcome.stdout.as_str()), (0, "Hi\n"), "{outcome}");
}

fn is_root_and_pid_one_among_its_own(host: &Host) {
    let seen = host.sh(&[], "id -u; id -g; echo $$; ps -o pid,comm | tail -n +2; true");
    let lines: Vec<&str> = seen.lines().map(str::trim).collect();
    assert_eq!(lines[..3], ["0", "0", "1"], "{seen}");
    assert!(lines[3].starts_with("1 ") && lines[3].ends_with("sh"), "{seen}");
    assert!(lines.len() <= 6, "foreign processes: {seen}");
}

/// Root inside is its owner outside.
fn its_own_program_is_out_of_reach(host: &Host) {
    let inside = "readlink /proc/1/exe; chmod 4711 /proc/1/exe; chmod 4711 /proc/self/fd/* 2>/dev/null; true";
    let outside =
        "cp /mnt/rnet ~/own && ~/own run --init --privileged /mnt/rootfs sh -c \"$0\" && stat -c %a ~/own";
    let seen = host.start_as_user(&["sh", "-c", outside, inside]).wait().success();
    assert_eq!(seen, "/memfd:rnet (deleted)\n755\n");
}

fn its_init_tells_nothing_of_the_host(host: &Host) {
    let read = "tr '\\0' '\\n' </proc/1/environ | grep . || echo nothing; cat /proc/1/comm";
    for options in [&["--init"][..], &["--init", "--privileged"]] {
        assert_eq!(host.run(options, Root::Busybox, &["sh", "-c", read]).success(), "nothing\nrnet-init\n");
    }
    let inside = "readlink /proc/1/exe || echo closed";
    assert_eq!(host.run(&["--init"], Root::Busybox, &["sh", "-c", inside]).success(), "closed\n");
}

fn sees_no_ipc_and_sets_its_hostname(host: &Host) {
    let seen = host
        .sh(&["--cap-add", "SYS_ADMIN"], "cat /proc/sysvipc/* | grep -vc key; hostname other && hostname");
    assert_eq!(seen, "0\nother\n");
}

fn status_is_that_of_the_command(host: &Host) {
    for status in [0, 1, 42, 255] {
        let outcome = host.run(&[], Root::Busybox, &["sh", "-c", &format!("exit {status}")]);
        assert_eq!(outcome.code(), status, "{outcome}");
    }
}

fn status_tells_why_a_command_did_not_start(host: &Host) {
    host.write("/mnt/rootfs/data", "no program");
    for (command, status) in [("no-such-command", 127), ("/no/such/file", 127), ("/data", 126), ("/bin", 126)]
    {
        let outcome = host.run(&[], Root::Busybox, &[command]);
        assert_eq!(outcome.code(), status, "{command}: {outcome}");
        assert!(outcome.stderr.contains(command), "{outcome}");
    }
}

fn status_tells_the_signal(host: &Host) {
    let mut sleep = host.start(&[], Root::Busybox, &["sh", "-c", "echo ready; exec sleep 1000"]);
    sleep.wait_for_output("ready");
    let inside = wait_for("the command's process", || {
        let comm = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        descendants(sleep.pid()).into_iter().find(|pid| comm(pid) == "sleep\n")
    });
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(inside), Signal::SIGKILL).expect("it runs");
    assert_eq!(sleep.wait().code(), 128 + 9);
}

fn failure_of_rnet_is_125(host: &Host) {
    let outcome = host.start_rnet(&["run", "/no/such/rootfs", "true"]).wait();
    assert_eq!(outcome.code(), 125, "{outcome}");
    assert!(outcome.stderr.contains("/no/such/rootfs"), "{outcome}");
}

fn failure_tells_the_remedy(host: &Host) {
    let file_on_directory = "/mnt/rootfs/bin/busybox:/tmp";
    for (options, command, status, said) in [
        (&["-w", "/no/such"][..], "true", 125, "-v"),
        (&["-v", file_on_directory], "true", 125, "one is a directory, the other a file"),
        (&["--cidr", "10.9.0.0/24"], "no-such-command", 127, "/usr/local/sbin:"),
        (&["--no-ipv6"], "/bin", 126, "it is a directory"),
    ] {
        let outcome = host.run(options, Root::Busybox, &[command]);
        assert_eq!(outcome.code(), status, "{outcome}");
        assert!(outcome.stderr.contains(said), "no {said:?}: {outcome}");
    }
}

fn full_standard_error_does_not_end_it(host: &Host) {
    let line = "/mnt/rnet run -p 80 /mnt/rootfs true 2>/dev/full";
    let outcome = host.start_as_user(&["/bin/sh", "-c", line]).wait();
    assert_eq!(outcome.code(), 0, "{outcome}");
}

fn interrupt_ends_a_command_that_does_not_catch_it(host: &Host) {
    ends_at_once(host, Signal::SIGINT, 130);
}

fn terminate_ends_a_command_that_does_not_catch_it(host: &Host) {
    ends_at_once(host, Signal::SIGTERM, 143);
}

fn caught_signal_reaches_the_command(host: &Host) {
    for (signal, name) in [
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGINT, "INT"),
        (Signal::SIGHUP, "HUP"),
        (Signal::SIGUSR1, "USR1"),
    ] {
        let line = format!("trap 'echo caught; exit 7' {name}; echo ready; while :; do sleep 0.05; done");
        let mut sh = host.start(&[], Root::Busybox, &["sh", "-c", &line]);
        sh.wait_for_output("ready");
        sh.signal(signal);
        let outcome = sh.wait();
        assert_eq!((outcome.code(), outcome.stdout.as_str()), (7, "ready\ncaught\n"), "{outcome}");
    }
}

fn init_reaps_and_passes_the_status(host: &Host) {
    let line = "for i in 1 2 3; do (sleep 0.05 &) ; done; sleep 0.5; ps -o stat | grep -c Z; echo $$; exit 9";
    let outcome = host.run(&["--init"], Root::Busybox, &["sh", "-c", line]);
    assert_eq!(outcome.code(), 9, "{outcome}");
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(lines[0], "0", "zombies: {outcome}");
    assert_ne!(lines[1], "1", "{outcome}");
    assert_eq!(host.run(&["--init"], Root::Busybox, &["sh", "-c", "kill -9 $$"]).code(), 137);
}

fn init_passes_signals(host: &Host) {
    let mut sleep = host.start(&["--init"], Root::Busybox, &["sh", "-c", "echo ready; exec sleep 1000"]);
    sleep.wait_for_output("ready");
    sleep.signal(Signal::SIGTERM);
    assert_eq!(sleep.wait().code(), 143);
}

fn nothing_outlives_the_command(host: &Host) {
    let mut sh = host.start(&[], Root::Busybox, &["sh", "-c", "sleep 1000 & echo ready; read line"]);
    sh.wait_for_output("ready");
    let inside = descendants(sh.pid());
    assert!(inside.len() >= 2, "{inside:?}");
    sh.write("end\n");
    assert_eq!(sh.wait().code(), 0);
    wait_until_gone(&inside);
}

fn nothing_outlives_a_killed_rnet(host: &Host) {
    for options in [&[][..], &["--init"]] {
        let mut sh = host.start(options, Root::Busybox, &["sh", "-c", "sleep 1000 & echo ready; sleep 1000"]);
        sh.wait_for_output("ready");
        let inside = descendants(sh.pid());
        assert!(inside.len() >= 2, "{inside:?}");
        sh.signal(Signal::SIGKILL);
        wait_until_gone(&inside);
    }
}

fn port_is_free_after_a_kill(host: &Host) {
    for _ in 0..2 {
        let mut sh = host.start(&["-p", "8080:8080"], Root::Busybox, &["sh", "-c", "echo ready; sleep 1000"]);
        sh.wait_for_output("ready");
        let inside = descendants(sh.pid());
        sh.signal(Signal::SIGKILL);
        wait_until_gone(&inside);
    }
}

fn runs_inside_itself(host: &Host) {
    let inner =
        ["/mnt/rnet", "run", "--cidr", "10.9.9.0/24", "/", "/bin/sh", "-c", "echo nested; ip -o addr"];
    let outcome = host.run(&["--cap-add", "SYS_ADMIN"], Root::Host, &inner);
    assert_eq!(outcome.code(), 0, "{outcome}");
    assert!(outcome.stdout.starts_with("nested\n") && outcome.stdout.contains("10.9.9.100/24"), "{outcome}");
}

fn system_calls_are_dockers(host: &Host) {
    // io_uring_setup, clone3, and one that no kernel has.
    let program = "import ctypes, errno, socket
libc = ctypes.CDLL(None, use_errno=True)
for call in 425, 435, 9999:
    ctypes.set_errno(0); libc.syscall(call, 0, 0); print(errno.errorcode[ctypes.get_errno()])
try:
    socket.socket(40, socket.SOCK_STREAM)
except OSError as error:
    print(errno.errorcode[error.errno])";
    assert_eq!(host.python(&[], program, &[]), "EPERM\nENOSYS\nENOSYS\nEPERM\n");
    let clone3 = "import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall(435, 0, 0); print(errno.errorcode[ctypes.get_errno()])";
    for options in [["--security-opt", "seccomp=unconfined"], ["--cap-add", "SYS_ADMIN"]] {
        assert_eq!(host.python(&options, clone3, &[]), "EINVAL\n");
    }
}

fn system_calls_of_the_machine_are_refused(host: &Host) {
    let program = "import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
for name, call in calls.items():
    ctypes.set_errno(0); libc.syscall(call, -1, 0, 0, 0, 0, 0); print(name, errno.errorcode[ctypes.get_errno()])";
    if !cfg!(target_arch = "x86_64") {
        return skip("the numbers are those of x86_64");
    }
    let calls = [("keyctl", 250), ("bpf", 321), ("mount", 165), ("kexec_load", 246), ("userfaultfd", 323)];
    let table: Vec<_> = calls.iter().map(|(name, call)| format!("'{name}': {call}")).collect();
    let program = format!("calls = {{{}}}\n{program}", table.join(", "));
    let refused: String = calls.iter().map(|(name, _)| format!("{name} EPERM\n")).collect();
    assert_eq!(host.python(&[], &program, &[]), refused);
}

/// As docker's users look at it: from inside, and from the host's /proc.
fn confinement_shows_inside_and_outside(host: &Host) {
    const FIELDS: [&str; 6] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp"];
    let fields = |status: &str| {
        FIELDS.map(|name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
            line.expect("in status").to_owned()
        })
    };
    let last: u32 = host.read("/proc/sys/kernel/cap_last_cap").trim().parse().expect("a number");
    let all = format!("{:016x}", (1_u64 << (last + 1)) - 1);
    let (none, docker, all) = ("0000000000000000", "00000000a80425fb", all.as_str());
    for (options, expected) in [
        (&[][..], [none, docker, docker, docker, "1", "2"]),
        (&["--init"], [none, docker, docker, docker, "1", "2"]),
        (&["--cap-drop", "ALL"], [none, none, none, none, "1", "2"]),
        (&["--privileged"], [none, all, all, all, "0", "0"]),
    ] {
        let mut sh = host.start(options, Root::Busybox, &["sh", "-c", "cat /proc/self/status; read line"]);
        sh.wait_for_output("nonvoluntary");
        assert_eq!(fields(&sh.stdout()), expected, "{options:?}");
        let inside = descendants(sh.pid()).into_iter().filter(|pid| name_of(*pid) != "rnet-sockets");
        for pid in inside {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
            // Which the command could look into, if that had as much.
            let beside = [none, all, none, docker, "1", "2"];
            let expected = if name_of(pid) == "rnet-init" { beside } else { expected };
            assert_eq!(fields(&status), expected, "{options:?}: {status}");
        }
        sh.write("end\n");
        assert_eq!(sh.wait().code(), 0);
    }
}

fn threads_that_serve_are_confined(host: &Host) {
    let mut sh = host.start(&[], Root::Busybox, &["sh", "-c", "echo ready; read line"]);
    sh.wait_for_output("ready");
    let threads = fs::read_dir(format!("/proc/{}/task", sh.pid())).expect("it runs");
    for thread in threads.flatten() {
        let read = |file: &str| fs::read_to_string(thread.path().join(file)).expect("it runs");
        let (name, status) = (read("comm"), read("status"));
        // One filter for all that rnet still is, and a further one for those who read packets.
        let filters = if name.starts_with("rnet-worker") { "2" } else { "1" };
        assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{name}: {status}");
        assert!(status.contains(&format!("Seccomp_filters:\t{filters}\n")), "{name}: {status}");
    }
    sh.write("end\n");
    assert_eq!(sh.wait().code(), 0);
}

fn name_of(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

fn forbidden_user_namespaces_are_explained(host: &Host) {
    let line = "echo 0 >/proc/sys/user/max_user_namespaces && exec /mnt/rnet run / true";
    let outer = ["/usr/bin/unshare", "--user", "--map-root-user", "/bin/sh", "-c", line];
    let outcome = host.start_as_user(&outer).wait();
    assert_eq!(outcome.code(), 125, "{outcome}");
    assert!(outcome.stderr.contains("user.max_user_namespaces"), "{outcome}");
}

fn streams_stay_apart(host: &Host) {
    let mut sh = host.start(&[], Root::Busybox, &["sh", "-c", "echo out; echo err >&2; cat"]);
    sh.write("in\n");
    let outcome = sh.wait();
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("out\nin\n", "err\n"));
}

fn inherits_no_file_of_rnet(host: &Host) {
    // The three streams and the directory that is listed.
    assert_eq!(host.sh(&["-p", "8080:80"], "ls /proc/self/fd | wc -l"), "4\n");
}

fn inherits_no_key_of_the_caller(host: &Host) {
    let program = include_str!("../guest/session_key.py");
    let python = ["/usr/bin/python3", "-c", program];
    let rnet = ["/mnt/rnet", "run", "--security-opt", "seccomp=unconfined", "/"];
    let argv = [&python[..], &rnet, &python].concat();
    assert_eq!(host.start_as_user(&argv).wait().success(), "hidden\n");
}

fn starts_with_signals_as_they_are_at_birth(host: &Host) {
    let seen = host.sh(&[], "grep -E '^Sig(Blk|Ign)' /proc/self/status");
    let mask = |name: &str| {
        let hex = seen.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        u64::from_str_radix(hex.expect("in status"), 16).expect("hexadecimal")
    };
    assert_eq!(mask("SigBlk"), 0);
    let pipe = 1 << (Signal::SIGPIPE as u64 - 1);
    assert_eq!(mask("SigIgn") & pipe, 0, "{seen}");
}

fn ends_at_once(host: &Host, signal: Signal, status: i32) {
    let nc = host.start(&["-p", "8080:8080"], Root::Busybox, &["nc", "-l", "-p", "8080"]);
    wait_until_it_runs(&nc, "nc");
    let start = Instant::now();
    nc.signal(signal);
    assert_eq!(nc.wait().code(), status);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

fn wait_until_it_runs(process: &Process, command: &str) {
    wait_for(command, || {
        let runs = |pid: &i32| {
            let cmdline = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            cmdline.starts_with(&format!("{command}\0"))
        };
        descendants(process.pid()).iter().any(runs).then_some(())
    });
}

fn wait_until_gone(pids: &[i32]) {
    wait_for("the container's processes to end", || pids.iter().all(|&pid| !is_alive(pid)).then_some(()));
}
