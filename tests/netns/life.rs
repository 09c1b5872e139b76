//! The life of containers: what is on record of them, and what is left when something is killed.

use nix::sys::signal::Signal;

use crate::lab::{Host, Root};
use crate::process::{Process, is_alive, wait_for};

over_any_link![
    a_running_container_is_on_record,
    a_killed_rnet_leaves_no_record_for_long,
    a_command_that_cannot_start_leaves_nothing,
];

fn a_running_container_is_on_record(host: &Host) {
    let options = ["--name", "box", "-p", "127.0.0.1:8080:80", "-e", "COLOUR=green", "-w", "/bin"];
    let mut guest = host.start(&options, Root::Busybox, &["sh", "-c", "echo up; cat"]);
    guest.wait_for_output("up");
    let record = wait_for("a record", || Some(record(host, "box")).filter(|r| r["State"]["Running"] == true));
    assert_eq!(record["Name"], "box");
    assert_eq!(record["State"]["Status"], "running");
    assert_eq!(record["Config"]["WorkingDir"], "/bin");
    assert_eq!(record["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"], "8080");
    let env = record["Config"]["Env"].as_array().expect("a list");
    assert!(env.contains(&"COLOUR=green".into()), "{env:?}");
    let pid = record["State"]["Pid"].as_i64().expect("a number") as i32;
    assert!(is_alive(pid) && pid != guest.pid());
    assert_eq!(guest.wait().code(), 0);
    assert_eq!(places(host), "");
}

fn a_killed_rnet_leaves_no_record_for_long(host: &Host) {
    let mut guest = host.start(&["--name", "box"], Root::Busybox, &["sh", "-c", "echo up; cat"]);
    guest.wait_for_output("up");
    kill(guest);
    assert_eq!(record(host, "box")["Name"], "box");
    host.sh(&[], "true");
    assert_eq!(places(host), "");
}

fn a_command_that_cannot_start_leaves_nothing(host: &Host) {
    assert_eq!(host.run(&["--name", "box"], Root::Busybox, &["/no/such/file"]).code(), 127);
    assert_eq!(host.run(&["--name", "box", "-v", "/no/such:/x"], Root::Busybox, &["true"]).code(), 125);
    assert_eq!(places(host), "");
}

/// Kills rnet, and waits for its end.
fn kill(guest: Process) {
    guest.signal(Signal::SIGKILL);
    assert!(!guest.wait().status.success());
}

/// What is on record of the container `name`.
fn record(host: &Host, name: &str) -> serde_json::Value {
    serde_json::from_str(&host.read(&format!("/mnt/home/rnet/{name}/container.json"))).expect("JSON")
}

/// The names of all networks and containers that have a directory.
fn places(host: &Host) -> String {
    host.tool(&["ls", "/mnt/home/rnet"]).success()
}
