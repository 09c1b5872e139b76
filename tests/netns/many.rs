//! Many flows at once, and many one after the other.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};

use crate::lab::{HOST, Host, REMOTE, Root, skip};
use crate::process::{Process, open_fds, wait_within};
use crate::services::{DnsServer, echo, tcp, tcp_idle};

const SERVE: &str = include_str!("../guest/serve.py");
const MANY_OUTBOUND: &str = include_str!("../guest/many_outbound.py");
const DNS_ONCE: &str = include_str!("../guest/dns_once.py");
const IDLE_FLOWS: &str = include_str!("../guest/idle_flows.py");
/// What an idle TCP flow may cost in rnet itself; the kernel's socket comes on top.
const MAX_IDLE_FLOW_BYTES: usize = 24 * 1024;

over_links![five_hundred_clients_at_once_are_served, more_connections_than_the_soft_fd_limit_are_served,];
over_queues![five_hundred_clients_at_once_are_served, more_connections_than_the_soft_fd_limit_are_served,];
over_any_link![ten_thousand_dns_queries_leave_nothing_open, ten_thousand_idle_flows_delay_no_other];

fn five_hundred_clients_at_once_are_served(host: &Host) {
    let mut guest = host.start_python(&["-p", "8080:80"], SERVE, &["80"]);
    guest.wait_for_output("ready\n");
    let clients: Vec<_> =
        (0..500).map(|_| host.dial((HOST, 8080)).expect("a place in the backlog")).collect();
    assert_each_has_its_own_echo(&clients);
}

/// Every client gets back its own number, and no other's.
pub(crate) fn assert_each_has_its_own_echo(clients: &[TcpStream]) {
    for (number, mut client) in clients.iter().enumerate() {
        client.write_all(&number.to_be_bytes()).expect("connected");
    }
    for (number, mut client) in clients.iter().enumerate() {
        let mut echoed = [0; 8];
        client.read_exact(&mut echoed).unwrap_or_else(|error| panic!("client {number}: {error}"));
        assert_eq!(usize::from_be_bytes(echoed), number);
    }
}

fn more_connections_than_the_soft_fd_limit_are_served(host: &Host) {
    let service = tcp(host.remote(), (REMOTE, 0), echo);
    let (addr, port) = (REMOTE.to_string(), service.port().to_string());
    let command = ["/usr/bin/python3", "-c", MANY_OUTBOUND, "1500", &addr, &port];
    let rnet = host.argv(&[], Root::Host, &command);
    let limited = [&["/usr/bin/prlimit", "--nofile=1024:", "--"], &rnet[..]].concat();
    let outcome = host.start_as_user(&limited).wait_at_most(Duration::from_secs(60));
    assert_eq!(outcome.success(), "served 1500\n");
}

fn ten_thousand_dns_queries_leave_nothing_open(host: &Host) {
    let server = DnsServer::start(host.space(), HOST, REMOTE);
    host.own_etc(&format!("nameserver {HOST}\n"));
    let mut guest = host.start_python(&[], DNS_ONCE, &["10000", "10.0.2.3"]);
    let done = wait_within(Duration::from_secs(90), || {
        (guest.stdout().contains("answered") || guest.has_ended()).then_some(())
    });
    assert!(done.is_some() && guest.stdout() == "answered 10000\n", "{}", text(&guest));
    assert!(server.met() >= 10_000);
    let fds = || open_fds(guest.pid());
    wait_within(Duration::from_secs(45), || (fds() < 64).then_some(()));
    assert!(fds() < 64, "{} file descriptors are open", fds());
}

fn ten_thousand_idle_flows_delay_no_other(host: &Host) {
    const FLOWS: usize = 10_000;
    if getrlimit(Resource::RLIMIT_NOFILE).is_ok_and(|(_, hard)| hard < FLOWS as u64 + 1000) {
        return skip("the hard limit of open files is too low");
    }
    let (idle, busy) = (tcp_idle(host.remote(), (REMOTE, 0)), tcp(host.remote(), (REMOTE, 0), echo));
    let args = [FLOWS.to_string(), REMOTE.to_string(), idle.port().to_string(), busy.port().to_string()];
    let mut guest = host.start_python(&[], IDLE_FLOWS, &args.each_ref().map(String::as_str));
    guest.wait_for_output("before ");
    let empty_kb = resident_kb(guest.pid());
    let measured = wait_within(Duration::from_secs(60), || median(&guest, "after "));
    let after_us = measured.unwrap_or_else(|| panic!("not {FLOWS}: {}\n{}", idle.met(), text(&guest)));
    let before_us = median(&guest, "before ").expect("printed first");
    let bytes = (resident_kb(guest.pid()) - empty_kb) * 1024 / FLOWS;
    println!("round trip {before_us} us, then {after_us} us; {bytes} bytes per idle flow");
    assert!(after_us < 2 * before_us + 300, "{before_us} us became {after_us} us");
    assert!(bytes < MAX_IDLE_FLOW_BYTES, "{bytes} bytes per idle flow");
}

/// The number that the guest printed after `name`.
fn median(guest: &Process, name: &str) -> Option<u32> {
    guest.stdout().lines().find_map(|line| line.strip_prefix(name)?.parse().ok())
}

/// Memory of a process that is in use.
fn resident_kb(pid: i32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("rnet runs");
    let field = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    field.and_then(|kb| kb.trim().strip_suffix(" kB")?.parse().ok()).expect("proc_pid_status(5)")
}

fn text(guest: &Process) -> String {
    format!("{}\n{}", guest.stdout(), guest.stderr())
}
