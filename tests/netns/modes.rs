//! `rnet run --net MODE`: no network, the host's, another container's.

use nix::sys::signal::Signal;

use crate::lab::{Host, REMOTE, Root};
use crate::process::{Process, descendants, is_alive, wait_for};
use crate::services::{echo, tcp};

over_any_link![
    without_a_network_there_is_only_the_own_loopback,
    the_hosts_network_is_the_hosts,
    settings_of_the_hosts_network_are_closed,
    a_container_shares_the_network_of_another,
    a_container_is_found_by_its_name,
    a_sharer_is_apart_in_everything_else,
    a_sharer_ends_with_its_rnet,
    what_a_mode_cannot_have_is_refused,
];

fn without_a_network_there_is_only_the_own_loopback(host: &Host) {
    let service = tcp(host.remote(), (REMOTE, 0), echo);
    let line = format!(
        "ls /sys/class/net; ping -c1 -W5 127.0.0.1 >/dev/null && echo up; \
         nc -w 2 {REMOTE} {} </dev/null 2>&1 || echo closed; cat /etc/resolv.conf",
        service.port()
    );
    let seen = host.sh(&["--net", "none"], &line);
    assert!(seen.starts_with("lo\nup\n") && seen.contains("unreachable\nclosed\n"), "{seen}");
    assert_eq!(service.met(), 0);
}

fn the_hosts_network_is_the_hosts(host: &Host) {
    host.own_etc("nameserver 192.0.2.53\n");
    let line = "readlink /proc/self/ns/net; ls /sys/class/net; cat /etc/resolv.conf; hostname";
    let seen = host.sh(&["--network", "host"], line);
    let own = host.tool(&["/bin/sh", "-c", "readlink /proc/self/ns/net; hostname"]).success();
    let (namespace, name) = own.split_once('\n').expect("two lines");
    assert!(seen.starts_with(namespace) && seen.ends_with(name), "{seen}");
    assert!(seen.contains("eth0\n") && seen.contains("nameserver 192.0.2.53\n"), "{seen}");
}

fn settings_of_the_hosts_network_are_closed(host: &Host) {
    let line = "echo 1 2>&1 >/sys/class/net/eth0/carrier || echo no; ip link set eth0 down || echo no; \
                echo 1 2>&1 >/proc/sys/net/ipv4/ip_forward || echo no";
    let outcome = host.run(&["--net", "host"], Root::Busybox, &["sh", "-c", line]);
    assert_eq!(outcome.stdout.matches("no\n").count(), 3, "{outcome}");
}

fn a_container_shares_the_network_of_another(host: &Host) {
    let service = tcp(host.remote(), (REMOTE, 0), echo);
    let (_first, pid) = first(host);
    let line = format!(
        "nc -w 5 127.0.0.1 80; echo hello | nc -w 5 {REMOTE} {}; cat /etc/hosts; hostname",
        service.port()
    );
    let seen = host.sh(&["--net", &format!("container:{pid}"), "-h", "second"], &line);
    assert!(seen.contains("the first\n") && seen.contains("hello\n"), "{seen}");
    assert!(seen.contains("10.0.2.100\tfirst\n") && seen.contains("127.0.0.1\tsecond\n"), "{seen}");
    assert_eq!(service.met(), 1);
}

fn a_container_is_found_by_its_name(host: &Host) {
    let (_first, _) = first(host);
    let seen = host.sh(&["--net", "container:first"], "nc -w 5 127.0.0.1 80");
    assert_eq!(seen, "the first\n");
    let outcome = host.run(&["--net", "container:nobody"], Root::Busybox, &["true"]);
    assert!(outcome.code() == 125 && outcome.stderr.contains("no such container"), "{outcome}");
}

fn a_sharer_is_apart_in_everything_else(host: &Host) {
    let (_first, pid) = first(host);
    let namespaces = |pid: &str| {
        let kinds = ["net", "user", "mnt", "pid", "uts", "ipc", "cgroup"];
        kinds.map(|kind| format!("readlink /proc/{pid}/ns/{kind}")).join("; ")
    };
    let firsts = host.tool(&["/bin/sh", "-c", &namespaces(&pid.to_string())]).success();
    let line = format!("{}; echo /proc/[0-9]*", namespaces("self"));
    let seen = host.sh(&["--net", &format!("container:{pid}")], &line);
    let same: Vec<bool> = seen.lines().zip(firsts.lines()).map(|(one, other)| one == other).collect();
    assert_eq!(same, [true, true, false, false, false, false, false], "{seen}\n{firsts}");
    assert!(seen.ends_with("/proc/1\n"), "{seen}");
}

fn a_sharer_ends_with_its_rnet(host: &Host) {
    let (mut first, pid) = first(host);
    let mut sharer = host.start(
        &["--net", &format!("container:{pid}")],
        Root::Busybox,
        &["sh", "-c", "echo up; sleep 60"],
    );
    sharer.wait_for_output("up\n");
    let inside = descendants(sharer.pid());
    assert!(!inside.is_empty());
    sharer.signal(Signal::SIGKILL);
    wait_for("the end of the container", || inside.iter().all(|&pid| !is_alive(pid)).then_some(()));
    assert!(!first.has_ended());
}

fn what_a_mode_cannot_have_is_refused(host: &Host) {
    let (_first, pid) = first(host);
    let shared = format!("container:{pid}");
    let own = format!("container:{}", std::process::id());
    for (options, expected) in [
        (&["--net", "none", "-p", "8080:80"][..], "--publish cannot be used with --net none"),
        (&["--net", &shared, "-p", "8080:80"], "rnet does not carry that network"),
        (&["--net", "host", "--dns", "192.0.2.1"], "--dns cannot be used with --net host"),
        (&["--net", &own], "cannot "),
        (&["--net", "container:999999999"], "there is no such process"),
    ] {
        let outcome = host.run(options, Root::Busybox, &["true"]);
        assert!(outcome.code() == 125 && outcome.stderr.contains(expected), "{options:?}: {outcome}");
    }
    let outcome = host.run(&["--net", "host", "-p", "8080:80"], Root::Busybox, &["true"]);
    assert!(outcome.code() == 0 && outcome.stderr.contains("no effect"), "{outcome}");
}

/// A container that serves on port 80, and the process id of its command.
fn first(host: &Host) -> (Process, i32) {
    let serve = "echo up; nc -ll -p 80 -e echo the first";
    let mut first = host.start(&["-h", "first", "--name", "first"], Root::Busybox, &["sh", "-c", serve]);
    first.wait_for_output("up\n");
    let pid = *descendants(first.pid()).first().expect("a command");
    (first, pid)
}
