//! Many flows at once, and many one after the other.

use std::io::{Read, Write};
use std::time::Duration;

use crate::lab::{HOST, Host, REMOTE, Root};
use crate::process::{Process, open_fds, wait_within};
use crate::services::{DnsServer, echo, tcp};

const SERVE: &str = include_str!("../guest/serve.py");
const MANY_OUTBOUND: &str = include_str!("../guest/many_outbound.py");
const DNS_ONCE: &str = include_str!("../guest/dns_once.py");

over_links![five_hundred_clients_at_once_are_served, more_connections_than_the_soft_fd_limit_are_served,];
over_any_link![ten_thousand_dns_queries_leave_nothing_open];

fn five_hundred_clients_at_once_are_served(host: &Host) {
    let mut guest = host.start_python(&["-p", "8080:80"], SERVE, &["80"]);
    guest.wait_for_output("ready\n");
    let clients: Vec<_> =
        (0..500).map(|_| host.dial((HOST, 8080)).expect("a place in the backlog")).collect();
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

fn text(guest: &Process) -> String {
    format!("{}\n{}", guest.stdout(), guest.stderr())
}
