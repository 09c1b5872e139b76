//! Containers in numbers, and killed at any moment: afterwards nothing is left, and no record lies.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::lab::{Host, Root};
use crate::process::{Process, is_alive, wait_for};

over_any_link![
    twenty_at_once_leave_nothing,
    a_hundred_in_a_row_leave_nothing,
    killed_processes_leave_nothing_and_no_record_lies,
    starts_that_are_killed_leave_nothing,
    layers_of_the_killed_are_removed,
];

const AT_ONCE: usize = 20;
const IN_A_ROW: usize = 100;
const VICTIMS: usize = 40;
const STARTS: usize = 30;

fn twenty_at_once_leave_nothing(host: &Host) {
    let before = mounts(host);
    let names: Vec<String> = (0..AT_ONCE).map(|number| named("twenty", number)).collect();
    let start = |(number, name): (usize, &String)| {
        let port = format!("127.0.0.1:{}:80", 8000 + number);
        host.start(&["-d", "--overlay", "--name", name, "-p", &port], Root::Busybox, &["sleep", "1000"])
    };
    all(names.iter().enumerate().map(start).collect());
    assert_eq!(rnet(host, &["ps", "-q"]).lines().count(), AT_ONCE);
    assert_truth(host);
    all(names.iter().map(|name| host.start_rnet(&["stop", name])).collect());
    for container in known(host) {
        assert_eq!((&container["State"], &container["ExitCode"]), (&"exited".into(), &143.into()));
    }
    all(names.iter().map(|name| host.start_rnet(&["rm", name])).collect());
    assert_nothing_left(host, &prefix("twenty"), &before);
}

fn a_hundred_in_a_row_leave_nothing(host: &Host) {
    let before = mounts(host);
    let name = named("hundred", 0);
    for number in 0..IN_A_ROW {
        let command = ["sh", "-c", "exit 7"];
        match number % 3 {
            0 => assert_eq!(host.run(&["--name", &name, "--rm"], Root::Busybox, &command).code(), 7),
            1 => {
                host.run(&["-d", "--name", &name], Root::Busybox, &command).success();
                assert_eq!(rnet(host, &["wait", &name]), "7\n");
                rnet(host, &["rm", &name]);
            }
            _ => {
                host.run(&["-d", "--name", &name], Root::Busybox, &["sleep", "1000"]).success();
                rnet(host, &["rm", "-f", &name]);
            }
        }
    }
    assert_nothing_left(host, &prefix("hundred"), &before);
}

fn killed_processes_leave_nothing_and_no_record_lies(host: &Host) {
    let before = mounts(host);
    let mut random = Random::new();
    let kinds: [&[&str]; 5] = [
        &["--overlay"],
        &["--restart", "always"],
        &["--restart", "on-failure", "--init"],
        &["--rm", "-i"],
        &["-p", "127.0.0.1::80", "-p", "127.0.0.1::81/udp"],
    ];
    for round in 0..VICTIMS {
        let name = named("killed", round);
        let options = [&["-d", "--name", &name], kinds[round % kinds.len()]].concat();
        host.run(&options, Root::Busybox, &["sh", "-c", "while :; do sleep 0.1; done"]).success();
        let commands =
            known(host).into_iter().filter_map(|known| known["Pid"].as_i64()).filter(|pid| *pid > 0);
        let mut victims = processes(&prefix("killed"));
        victims.extend(commands.filter_map(|pid| i32::try_from(pid).ok()));
        let victim = victims[random.below(victims.len())];
        // It may have ended meanwhile, which is as good.
        let _ = kill(Pid::from_raw(victim), Signal::SIGKILL);
        if round % 4 == 0 {
            assert_truth(host);
        }
    }
    assert_truth(host);
    let names: Vec<String> = known(host).iter().map(|known| text(&known["Name"])).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    host.start_rnet(&[&["rm", "-f"], &names[..]].concat()).wait().success();
    assert_nothing_left(host, &prefix("killed"), &before);
}

fn starts_that_are_killed_leave_nothing(host: &Host) {
    let before = mounts(host);
    let mut random = Random::new();
    for round in 0..STARTS {
        let name = named("started", round);
        let options = ["-d", "--overlay", "--restart", "always", "--name", &name, "-p", "127.0.0.1:8080:80"];
        let mut start = host.start(&options, Root::Busybox, &["sleep", "1000"]);
        // Some moment of the set-up, or a little later.
        std::thread::sleep(Duration::from_micros(random.below(60_000) as u64));
        // What is forked or executed meanwhile is seen the next time.
        wait_for("the end of all", || {
            let ended = start.has_ended();
            let living = processes(&prefix("started"));
            for process in &living {
                let _ = kill(Pid::from_raw(*process), Signal::SIGKILL);
            }
            (ended && living.is_empty()).then_some(())
        });
        // The lock of a killed keeper goes with its last thread.
        let dead = |known: &Vec<Value>| known.iter().all(|container| container["State"] == "exited");
        for container in wait_for("records of the dead", || Some(known(host)).filter(dead)) {
            rnet(host, &["rm", &text(&container["Name"])]);
        }
    }
    assert_nothing_left(host, &prefix("started"), &before);
}

fn layers_of_the_killed_are_removed(host: &Host) {
    let left = "/mnt/home/tmp/rnet-65533/layers-1-0";
    let make = format!("umask 077; mkdir -p {left}/work/work && chmod 0 {left}/work/work");
    host.start_as_user(&["/bin/sh", "-c", &make]).wait().success();
    host.start_as_user(&["/usr/bin/env", "TMPDIR=/mnt/home/tmp", "/mnt/rnet", "ps"]).wait().success();
    assert_eq!(host.tool(&["ls", "/mnt/home/tmp/rnet-65533"]).success(), "");
}

/// The name of a container that no other test and no other run of tests has.
fn named(test: &str, number: usize) -> String {
    format!("{}{number}", prefix(test))
}

fn prefix(test: &str) -> String {
    format!("{test}-{}-", std::process::id())
}

/// Every record says what is: who is said to run does, and who is not does not.
fn assert_truth(host: &Host) {
    wait_for("records that are true", || {
        let records: Vec<Value> = known(host);
        records.iter().all(is_true).then_some(())
    });
}

/// A container may change between the record and the look, so that only a lie that stays is one.
fn is_true(known: &Value) -> bool {
    let name = text(&known["Name"]);
    let id = text(&known["Id"]);
    let keepers = processes(&id).into_iter().chain(processes(&format!("{name}\0"))).count();
    let pid = known["Pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a number");
    match known["State"].as_str() {
        Some("running") => is_alive(pid) && keepers > 0,
        Some("restarting") => keepers > 0,
        Some("exited") => pid == 0 && keepers == 0,
        _ => false,
    }
}

/// No process, mount, directory or port of containers whose names begin with `prefix`.
fn assert_nothing_left(host: &Host, prefix: &str, mounts_before: &str) {
    wait_for("the end of all processes", || processes(prefix).is_empty().then_some(()));
    assert_eq!(rnet(host, &["ps", "-aq"]), "");
    assert_eq!(host.tool(&["ls", "-A", "/mnt/home/rnet"]).success(), ".lock\n");
    assert_eq!(mounts(host), mounts_before);
    let listening = host.tool(&["ss", "-Hltun"]).success();
    assert_eq!(listening, "");
}

/// Waits for all, each of which must succeed.
fn all(processes: Vec<Process>) {
    for process in processes {
        process.wait().success();
    }
}

fn known(host: &Host) -> Vec<Value> {
    let known: Value = serde_json::from_str(&rnet(host, &["ps", "-a", "--json"])).expect("JSON");
    known.as_array().expect("a list").clone()
}

fn rnet(host: &Host, argv: &[&str]) -> String {
    host.start_rnet(argv).wait().success()
}

fn mounts(host: &Host) -> String {
    host.tool(&["cat", "/proc/self/mounts"]).success()
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

/// Processes that live and have `word` in their command line.
fn processes(word: &str) -> Vec<i32> {
    let all = std::fs::read_dir("/proc").expect("there is /proc").flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let has_word = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(b"/mnt/rnet\0run\0")
            && line.windows(word.len()).any(|window| window == word.as_bytes())
    };
    pids.filter(has_word).filter(|pid| is_alive(*pid)).collect()
}

/// A sequence that its seed repeats (SplitMix64).
struct Random(u64);

impl Random {
    /// With a seed of the moment, which is printed.
    fn new() -> Self {
        let seed = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as u64;
        println!("seed {seed}");
        Self(seed)
    }

    /// A number below `limit`, which is not 0.
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % limit as u64) as usize
    }
}
