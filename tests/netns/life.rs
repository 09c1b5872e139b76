//! The life of containers: what is on record of them, how they are ended, and what is left when something is killed.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::lab::{Host, Root};
use crate::process::{Outcome, descendants, is_alive, wait_for};

over_any_link![
    a_running_container_is_on_record,
    a_killed_rnet_leaves_no_record_for_long,
    a_command_that_cannot_start_leaves_nothing,
    a_container_with_a_name_is_kept_until_it_is_removed,
    in_the_background_the_id_is_all_that_is_printed,
    a_command_that_cannot_start_in_the_background_is_the_callers,
    output_in_the_background_is_kept_by_stream,
    logs_can_be_followed_until_the_end,
    input_in_the_background_is_empty_or_never_ends,
    stopping_asks_kindly_first,
    a_container_that_does_not_listen_is_killed,
    a_stop_signal_can_be_chosen,
    any_signal_can_be_sent,
    waiting_tells_the_status_of_one_that_is_not_kept,
    one_that_runs_is_removed_by_force_only,
    one_whose_rnet_was_killed_counts_as_killed,
    ports_are_listed_as_they_are_now,
    a_paused_container_stands_still_as_a_whole,
    a_paused_container_can_be_stopped,
    a_command_that_fails_is_started_again,
    restarts_keep_the_process_the_id_the_output_and_the_surroundings,
    stopping_ends_restarts,
    a_container_that_waits_to_be_restarted_can_be_stopped,
    a_signal_of_the_caller_ends_restarts_in_the_foreground,
];

fn a_running_container_is_on_record(host: &Host) {
    let options = ["--name", "box", "--rm", "-p", "127.0.0.1:8080:80", "-e", "COLOUR=green", "-w", "/bin"];
    let mut guest = host.start(&options, Root::Busybox, &["sh", "-c", "echo up; cat"]);
    guest.wait_for_output("up");
    let record =
        wait_for("a record", || Some(inspect(host, "box")).filter(|r| r["State"]["Running"] == true));
    assert_eq!((&record["Name"], &record["State"]["Status"]), (&"box".into(), &"running".into()));
    assert_eq!(record["Config"]["WorkingDir"], "/bin");
    assert_eq!(record["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"], "8080");
    let env = record["Config"]["Env"].as_array().expect("a list");
    assert!(env.contains(&"COLOUR=green".into()), "{env:?}");
    let pid = number(&record["State"]["Pid"]);
    assert!(is_alive(pid) && pid != guest.pid());
    assert_eq!(guest.wait().code(), 0);
    assert_eq!(places(host), "");
}

fn a_killed_rnet_leaves_no_record_for_long(host: &Host) {
    let mut guest = host.start(&["--name", "box", "--rm"], Root::Busybox, &["sh", "-c", "echo up; cat"]);
    guest.wait_for_output("up");
    guest.signal(Signal::SIGKILL);
    assert!(!guest.wait().status.success());
    assert_eq!(places(host), "box\n");
    assert_eq!(rnet(host, &["ps", "-aq"]), "");
    assert_eq!(places(host), "");
}

fn a_command_that_cannot_start_leaves_nothing(host: &Host) {
    assert_eq!(host.run(&["--name", "box"], Root::Busybox, &["/no/such/file"]).code(), 127);
    assert_eq!(host.run(&["--name", "box", "-v", "/no/such:/x"], Root::Busybox, &["true"]).code(), 125);
    assert_eq!(places(host), "");
}

fn a_container_with_a_name_is_kept_until_it_is_removed(host: &Host) {
    assert_eq!(host.run(&["--name", "box"], Root::Busybox, &["sh", "-c", "exit 3"]).code(), 3);
    let record = inspect(host, "box");
    assert_eq!((&record["State"]["Status"], &record["State"]["ExitCode"]), (&"exited".into(), &3.into()));
    assert!(rnet(host, &["ps", "-a"]).contains("Exited (3)"));
    assert_eq!(rnet(host, &["ps", "-q"]), "");
    let again = host.run(&["--name", "box"], Root::Busybox, &["true"]);
    assert_eq!(again.code(), 125);
    assert!(
        again.stderr.contains("a container that has ended has it") && again.stderr.contains("rnet rm box")
    );
    assert_eq!(rnet(host, &["rm", "box"]), "box\n");
    assert_eq!(host.run(&["--name", "box"], Root::Busybox, &["true"]).code(), 0);
}

fn in_the_background_the_id_is_all_that_is_printed(host: &Host) {
    let outcome = host.run(&["-d", "-p", "127.0.0.1::80"], Root::Busybox, &["sleep", "1000"]);
    assert_eq!((outcome.code(), outcome.stderr.as_str()), (0, ""));
    let id = outcome.stdout.trim();
    assert!(id.len() == 64 && outcome.stdout == format!("{id}\n"), "{id}");
    let record = inspect(host, id);
    assert_eq!((&record["Name"], &record["Id"]), (&id[..12].into(), &id.into()));
    assert_eq!(rnet(host, &["rm", "-f", &id[..5]]), format!("{}\n", &id[..5]));
    assert_eq!(places(host), "");
}

fn a_command_that_cannot_start_in_the_background_is_the_callers(host: &Host) {
    for (options, command, status, cause) in [
        (&["-d", "--name", "box"][..], "/no/such/file", 127, "/no/such/file"),
        (&["-d"], "/bin", 126, "it is a directory"),
        (&["-d", "-v", "/no/such:/x"], "true", 125, "/no/such"),
    ] {
        let outcome = host.run(options, Root::Busybox, &[command]);
        assert_eq!((outcome.code(), outcome.stdout.as_str()), (status, ""), "{outcome}");
        assert!(outcome.stderr.contains(cause), "{outcome}");
        assert_eq!(places(host), "");
    }
}

fn output_in_the_background_is_kept_by_stream(host: &Host) {
    start(host, &["--name", "box"], "echo one; echo two >&2; printf three");
    assert_eq!(rnet(host, &["wait", "box"]), "0\n");
    let outcome = finish(host, &["logs", "box"]);
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("one\nthree", "two\n"));
    assert_eq!(rnet(host, &["logs", "--tail", "1", "box"]), "three");
    assert_eq!(rnet(host, &["logs", "--since", "2099-01-01T00:00:00Z", "box"]), "");
    assert_eq!(rnet(host, &["logs", "--since", "1h", "box"]), "one\nthree");
    let stamped = rnet(host, &["logs", "-t", "box"]);
    assert!(stamped.starts_with("20") && stamped.contains("Z one\n"), "{stamped}");
    let line = host.read("/mnt/home/rnet/box/log");
    let line: Value = serde_json::from_str(line.lines().next().expect("a line")).expect("JSON");
    assert_eq!((&line["log"], &line["stream"]), (&"one\n".into(), &"stdout".into()));
}

fn logs_can_be_followed_until_the_end(host: &Host) {
    start(
        host,
        &["--name", "box", "--rm", "-i"],
        "echo one; trap 'echo two; exit' TERM; while :; do sleep 0.1; done",
    );
    let mut follower = host.start_rnet(&["logs", "-f", "box"]);
    follower.wait_for_output("one\n");
    rnet(host, &["kill", "-s", "TERM", "box"]);
    assert_eq!(follower.wait().success(), "one\ntwo\n");
}

fn input_in_the_background_is_empty_or_never_ends(host: &Host) {
    start(host, &["--name", "empty"], "cat; echo end");
    assert_eq!(rnet(host, &["wait", "empty"]), "0\n");
    assert_eq!(rnet(host, &["logs", "empty"]), "end\n");
    start(host, &["--name", "open", "-i"], "echo begin; cat; echo end");
    wait_for("begin", || (rnet(host, &["logs", "open"]) == "begin\n").then_some(()));
    assert_eq!(inspect(host, "open")["State"]["Running"], true);
    rnet(host, &["stop", "open"]);
    assert_eq!(rnet(host, &["logs", "open"]), "begin\n");
}

fn stopping_asks_kindly_first(host: &Host) {
    start(host, &["--name", "a"], "exec sleep 1000");
    start(host, &["--name", "b"], "trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done");
    wait_for("up", || (rnet(host, &["logs", "b"]) == "up\n").then_some(()));
    assert_eq!(rnet(host, &["stop", "a", "b"]), "a\nb\n");
    assert_eq!(inspect(host, "a")["State"]["ExitCode"], 143);
    assert_eq!(inspect(host, "b")["State"]["ExitCode"], 5);
    assert_eq!(rnet(host, &["stop", "a"]), "a\n");
    assert!(finish(host, &["stop", "none"]).stderr.contains("no such container none"));
}

fn a_container_that_does_not_listen_is_killed(host: &Host) {
    start(host, &["--name", "box"], "trap '' TERM; echo up; while :; do sleep 0.1; done");
    wait_for("up", || (rnet(host, &["logs", "box"]) == "up\n").then_some(()));
    rnet(host, &["stop", "-t", "0", "box"]);
    assert_eq!(inspect(host, "box")["State"]["ExitCode"], 137);
}

fn a_stop_signal_can_be_chosen(host: &Host) {
    let line = "trap 'echo wrong' TERM; trap 'exit 6' USR1; echo up; while :; do sleep 0.1; done";
    start(host, &["--name", "box", "--stop-signal", "USR1"], line);
    wait_for("up", || (rnet(host, &["logs", "box"]) == "up\n").then_some(()));
    rnet(host, &["stop", "box"]);
    assert_eq!(inspect(host, "box")["State"]["ExitCode"], 6);
    assert_eq!(rnet(host, &["logs", "box"]), "up\n");
}

fn any_signal_can_be_sent(host: &Host) {
    start(host, &["--name", "box"], "trap 'echo got' USR2; echo up; while :; do sleep 0.1; done");
    wait_for("up", || (rnet(host, &["logs", "box"]) == "up\n").then_some(()));
    rnet(host, &["kill", "-s", "SIGUSR2", "box"]);
    wait_for("got", || (rnet(host, &["logs", "box"]) == "up\ngot\n").then_some(()));
    rnet(host, &["kill", "box"]);
    assert_eq!(rnet(host, &["wait", "box"]), "137\n");
    assert!(finish(host, &["kill", "box"]).stderr.contains("it is not running"));
}

fn waiting_tells_the_status_of_one_that_is_not_kept(host: &Host) {
    start(host, &["--name", "box", "--rm"], "trap 'exit 9' TERM; echo up; while :; do sleep 0.1; done");
    wait_for("up", || (rnet(host, &["logs", "box"]) == "up\n").then_some(()));
    let waiter = host.start_rnet(&["wait", "box"]);
    wait_for("a waiter", || waits_for_a_process(waiter.pid()).then_some(()));
    rnet(host, &["kill", "-s", "TERM", "box"]);
    assert_eq!(waiter.wait().success(), "9\n");
    assert_eq!(places(host), "");
}

fn one_that_runs_is_removed_by_force_only(host: &Host) {
    start(host, &["--name", "box"], "exec sleep 1000");
    let keeper = keeper(host, "box");
    let refused = finish(host, &["rm", "box"]);
    assert_eq!(refused.code(), 125);
    assert!(
        refused.stderr.contains("it is running") && refused.stderr.contains("rnet stop box"),
        "{refused}"
    );
    assert_eq!(rnet(host, &["rm", "-f", "box", "none"]), "box\n");
    assert!(!is_alive(keeper));
    assert_eq!(places(host), "");
}

fn one_whose_rnet_was_killed_counts_as_killed(host: &Host) {
    start(host, &["--name", "box", "-p", "127.0.0.1:8080:80"], "exec sleep 1000");
    let keeper = keeper(host, "box");
    let below = descendants(keeper);
    assert!(!below.is_empty());
    kill(Pid::from_raw(keeper), Signal::SIGKILL).expect("it is there");
    assert_eq!(rnet(host, &["wait", "box"]), "137\n");
    let record = inspect(host, "box");
    assert_eq!((&record["State"]["Status"], &record["State"]["ExitCode"]), (&"exited".into(), &137.into()));
    assert_eq!(record["State"]["Error"], "its rnet process was killed");
    wait_for("the end of all", || below.iter().all(|pid| !is_alive(*pid)).then_some(()));
    assert_eq!(host.run(&["-p", "127.0.0.1:8080:80"], Root::Busybox, &["true"]).code(), 0);
}

fn ports_are_listed_as_they_are_now(host: &Host) {
    start(host, &["--name", "box"], "exec sleep 1000");
    rnet(host, &["port", "add", "box", "127.0.0.1:8081:81"]);
    assert_eq!(inspect(host, "box")["NetworkSettings"]["Ports"]["81/tcp"][0]["HostPort"], "8081");
    assert!(rnet(host, &["ps"]).contains("127.0.0.1:8081->81/tcp"));
    rnet(host, &["stop", "box"]);
    assert_eq!(inspect(host, "box")["NetworkSettings"]["Ports"], serde_json::json!({}));
}

fn a_paused_container_stands_still_as_a_whole(host: &Host) {
    start(host, &["--name", "box"], "(while :; do sleep 0.01; done) & echo $!; wait");
    let below = wait_for("the shells", || {
        let below = descendants(number(&inspect(host, "box")["State"]["Pid"]));
        (below.len() == 2).then_some(below)
    });
    rnet(host, &["pause", "box"]);
    let record = inspect(host, "box");
    assert_eq!((&record["State"]["Status"], &record["State"]["Paused"]), (&"paused".into(), &true.into()));
    assert!(rnet(host, &["ps"]).contains("(Paused)"));
    let pid = number(&record["State"]["Pid"]);
    wait_for("a stop", || [pid, below[0]].iter().all(|pid| is_stopped(*pid)).then_some(()));
    assert!(finish(host, &["pause", "box"]).stderr.contains("it is paused already"));
    rnet(host, &["unpause", "box"]);
    wait_for("a start", || [pid, below[0]].iter().all(|pid| !is_stopped(*pid)).then_some(()));
    assert_eq!(inspect(host, "box")["State"]["Status"], "running");
    assert!(finish(host, &["unpause", "box"]).stderr.contains("it is not paused"));
}

fn a_paused_container_can_be_stopped(host: &Host) {
    start(host, &["--name", "box"], "trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done");
    wait_for("up", || (rnet(host, &["logs", "box"]) == "up\n").then_some(()));
    rnet(host, &["pause", "box"]);
    rnet(host, &["stop", "box"]);
    assert_eq!(inspect(host, "box")["State"]["ExitCode"], 5);
    assert!(finish(host, &["pause", "box"]).stderr.contains("it is not running"));
}

/// Whether a signal, or somebody who traces it, has stopped `pid`.
fn is_stopped(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}

fn a_command_that_fails_is_started_again(host: &Host) {
    start(host, &["--name", "box", "--restart", "on-failure:3"], "echo run; exit 4");
    assert_eq!(rnet(host, &["wait", "box"]), "4\n");
    let record = inspect(host, "box");
    assert_eq!((&record["RestartCount"], &record["State"]["Status"]), (&3.into(), &"exited".into()));
    assert_eq!(rnet(host, &["logs", "box"]), "run\n".repeat(4));
    start(host, &["--name", "well", "--restart", "on-failure"], "echo run");
    assert_eq!(rnet(host, &["wait", "well"]), "0\n");
    assert_eq!(inspect(host, "well")["RestartCount"], 0);
}

fn restarts_keep_the_process_the_id_the_output_and_the_surroundings(host: &Host) {
    let options =
        ["--name", "box", "--restart", "on-failure", "-v", ".:/home", "-p", "127.0.0.1:8080:80", "-h", "me"];
    let line = "echo x >>/home/count; n=$(wc -l </home/count); echo $n $(hostname) $(ulimit -Sn) $(cat /proc/self/status | grep SigBlk) \
                $(test -d /home/rnet && echo home); [ $n -lt 3 ] || exec sleep 1000; exit 1";
    start(host, &options, line);
    let keeper = keeper(host, "box");
    let before = inspect(host, "box");
    let record = wait_for("the third start", || {
        let record = inspect(host, "box");
        (record["RestartCount"] == 2 && record["State"]["Running"] == true).then_some(record)
    });
    assert_eq!((&record["Id"], &record["Created"]), (&before["Id"], &before["Created"]));
    assert_eq!(number(&record["Rnet"]["Keeper"]["Pid"]), keeper);
    assert_eq!(record["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"], "8080");
    let lines = wait_for("three lines", || {
        let lines: Vec<String> = rnet(host, &["logs", "box"]).lines().map(str::to_owned).collect();
        (lines.len() == 3).then_some(lines)
    });
    for (number, line) in lines.iter().enumerate() {
        let rest = lines[0].strip_prefix("1 ").expect("the first line");
        assert_eq!(line, &format!("{} {rest}", number + 1));
        assert!(line.ends_with("home") && line.contains(" me "), "{line}");
    }
    rnet(host, &["rm", "-f", "box"]);
    assert_eq!(places(host), "");
}

fn stopping_ends_restarts(host: &Host) {
    start(host, &["--name", "box", "--restart", "always"], "exec sleep 1000");
    rnet(host, &["kill", "-s", "TERM", "box"]);
    wait_for("a restart", || (inspect(host, "box")["RestartCount"] == 1).then_some(()));
    wait_for("its start", || (inspect(host, "box")["State"]["Running"] == true).then_some(()));
    rnet(host, &["stop", "box"]);
    let record = inspect(host, "box");
    assert_eq!((&record["RestartCount"], &record["State"]["ExitCode"]), (&1.into(), &143.into()));
    assert_eq!(record["State"]["Status"], "exited");
}

fn a_container_that_waits_to_be_restarted_can_be_stopped(host: &Host) {
    start(host, &["--name", "box", "--restart", "always"], "exit 4");
    wait_for("a pause of some length", || {
        let record = inspect(host, "box");
        let pause = record["Rnet"]["PauseMs"].as_i64().expect("a number");
        (pause >= 800 && record["State"]["Status"] == "restarting").then_some(())
    });
    assert!(rnet(host, &["ps"]).contains("Restarting (4)"));
    rnet(host, &["stop", "box"]);
    let record = inspect(host, "box");
    assert_eq!((&record["State"]["Status"], &record["State"]["ExitCode"]), (&"exited".into(), &4.into()));
}

fn a_signal_of_the_caller_ends_restarts_in_the_foreground(host: &Host) {
    let mut guest =
        host.start(&["--restart", "always"], Root::Busybox, &["sh", "-c", "echo run; sleep 0.1; exit 4"]);
    wait_for("the second start", || (guest.stdout().lines().count() >= 2).then_some(()));
    assert!(!guest.has_ended());
    guest.signal(Signal::SIGTERM);
    let code = guest.wait().code();
    assert!(code == 143 || code == 4, "{code}");
    assert_eq!(places(host), "");
}

/// Starts a shell line in the background.
fn start(host: &Host, options: &[&str], line: &str) {
    let options = [&["-d"], options].concat();
    host.run(&options, Root::Busybox, &["sh", "-c", line]).success();
}

/// What `rnet ARGV` prints if all goes well.
fn rnet(host: &Host, argv: &[&str]) -> String {
    finish(host, argv).success()
}

fn finish(host: &Host, argv: &[&str]) -> Outcome {
    host.start_rnet(argv).wait()
}

/// All that is known of the container `name`.
fn inspect(host: &Host, name: &str) -> Value {
    let known: Value = serde_json::from_str(&rnet(host, &["inspect", name])).expect("JSON");
    known[0].clone()
}

/// The rnet that keeps the container `name`.
fn keeper(host: &Host, name: &str) -> i32 {
    number(&inspect(host, name)["Rnet"]["Keeper"]["Pid"])
}

fn number(value: &Value) -> i32 {
    value.as_i64().and_then(|number| i32::try_from(number).ok()).expect("a number")
}

/// Whether `pid` has a descriptor of another process open.
fn waits_for_a_process(pid: i32) -> bool {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    fds.filter_map(|fd| std::fs::read_link(fd.path()).ok())
        .any(|target| target.ends_with("anon_inode:[pidfd]"))
}

/// The names of all networks and containers that have a directory.
fn places(host: &Host) -> String {
    host.tool(&["ls", "/mnt/home/rnet"]).success()
}
