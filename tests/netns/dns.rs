//! The DNS forwarder: both transports, all the host's servers, and changes of its resolv.conf.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use crate::lab::{HOST, HOST6, Host, REMOTE, Root, SILENT, skip};
use crate::services::DnsServer;

const LOOPBACK: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 53);
const ANSWER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 201);
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 202);
const THIRD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 203);
const DIG: &str = "/usr/bin/dig";

over_links![answers_over_udp_and_tcp, large_answer_comes_over_tcp];
over_queues![answers_over_udp_and_tcp, large_answer_comes_over_tcp];
over_any_link![
    loopback_resolver_serves_over_both_families,
    ipv6_resolver_serves_ipv4_guests,
    dead_server_is_passed_over,
    silent_server_is_passed_over,
    given_server_is_used,
    host_without_a_server_answers_with_failure,
    changed_resolv_conf_is_read_again,
    only_port_53_of_the_forwarder_answers,
    search_domains_are_the_hosts,
];

fn answers_over_udp_and_tcp(host: &Host) {
    let server = DnsServer::start(host.remote(), REMOTE, ANSWER);
    host.own_etc(&format!("nameserver {REMOTE}\n"));
    assert_dig(host, &["+short", "+notcp", "name.test", "A"], ANSWER);
    assert_eq!((server.udp.met(), server.tcp.met()), (1, 0));
    assert_dig(host, &["+short", "+tcp", "name.test", "A"], ANSWER);
    assert_eq!(server.met(), 2);
}

fn large_answer_comes_over_tcp(host: &Host) {
    let server = DnsServer::start(host.remote(), REMOTE, ANSWER);
    host.own_etc(&format!("nameserver {REMOTE}\n"));
    let Some(seen) = dig(host, &[], &["+short", "+noedns", "big.test", "TXT"]) else {
        return;
    };
    assert_eq!(seen.matches('x').count(), 800, "{seen}");
    assert_eq!((server.udp.met(), server.tcp.met()), (1, 1));
}

fn loopback_resolver_serves_over_both_families(host: &Host) {
    let _server = DnsServer::start(host.space(), LOOPBACK, ANSWER);
    host.own_etc(&format!("nameserver {LOOPBACK}\n"));
    assert_dig(host, &["+short", "@10.0.2.3", "name.test"], ANSWER);
    assert_dig(host, &["+short", "@fd00::3", "name.test"], ANSWER);
    assert_dig(host, &["+short", "+tcp", "@fd00::3", "name.test"], ANSWER);
}

fn ipv6_resolver_serves_ipv4_guests(host: &Host) {
    let _server = DnsServer::start(host.space(), HOST6, ANSWER);
    host.own_etc(&format!("nameserver {HOST6}\n"));
    assert_dig(host, &["+short", "@10.0.2.3", "name.test"], ANSWER);
    assert_dig(host, &["+short", "+tcp", "@10.0.2.3", "name.test"], ANSWER);
}

fn dead_server_is_passed_over(host: &Host) {
    let _server = DnsServer::start(host.space(), HOST, ANSWER);
    host.own_etc(&format!("nameserver {REMOTE}\nnameserver {HOST}\n"));
    assert_dig(host, &["+short", "+tries=1", "name.test"], ANSWER);
    assert_dig(host, &["+short", "+tries=1", "+tcp", "name.test"], ANSWER);
}

fn silent_server_is_passed_over(host: &Host) {
    let _server = DnsServer::start(host.space(), HOST, ANSWER);
    host.own_etc(&format!("nameserver {SILENT}\nnameserver {HOST}\n"));
    assert_dig(host, &["+short", "+time=5", "name.test"], ANSWER);
}

fn given_server_is_used(host: &Host) {
    let _server = DnsServer::start(host.space(), Ipv6Addr::LOCALHOST, ANSWER);
    host.own_etc(&format!("nameserver {SILENT}\n"));
    let Some(seen) = dig(host, &["--dns", "::1"], &["+short", "name.test"]) else {
        return;
    };
    assert_eq!(seen, format!("{ANSWER}\n"));
}

fn host_without_a_server_answers_with_failure(host: &Host) {
    host.own_etc("# nobody\n");
    let outcome = host.run(&[], Root::Busybox, &["nslookup", "name.test"]);
    assert!(!outcome.status.success() && outcome.code() != 125, "{outcome}");
}

fn changed_resolv_conf_is_read_again(host: &Host) {
    let _servers = [
        DnsServer::start(host.space(), LOOPBACK, ANSWER),
        DnsServer::start(host.space(), HOST, OTHER),
        DnsServer::start(host.space(), HOST6, THIRD),
    ];
    host.own_etc(&format!("nameserver {LOOPBACK}\n"));
    let ask = "while :; do nslookup name.test 10.0.2.3 | tail -n +3; sleep 0.1; done";
    let mut guest = host.start(&[], Root::Busybox, &["sh", "-c", ask]);
    guest.wait_for_output(&ANSWER.to_string());
    host.write("/etc/resolv.conf", &format!("nameserver {HOST}\n"));
    guest.wait_for_output(&OTHER.to_string());
    host.write("/etc/resolv.new", &format!("nameserver {HOST6}\n"));
    host.tool(&["/bin/mv", "/etc/resolv.new", "/etc/resolv.conf"]).success();
    guest.wait_for_output(&THIRD.to_string());
}

fn only_port_53_of_the_forwarder_answers(host: &Host) {
    let _server = crate::services::udp_echo(host.space(), (Ipv4Addr::UNSPECIFIED, 7000));
    let program = include_str!("../guest/udp.py");
    let seen = host.python(&[], program, &["send", "10.0.2.3", "7000"]);
    assert!(["ECONNREFUSED\n", "EHOSTUNREACH\n"].contains(&seen.as_str()), "{seen}");
}

fn search_domains_are_the_hosts(host: &Host) {
    host.own_etc(&format!("search one.test two.test\nnameserver {HOST}\n"));
    let seen = host.sh(&[], "cat /etc/resolv.conf");
    assert!(seen.contains("search one.test two.test") && !seen.contains(&HOST.to_string()), "{seen}");
}

fn assert_dig(host: &Host, args: &[&str], expected: Ipv4Addr) {
    if let Some(seen) = dig(host, &[], args) {
        assert_eq!(seen, format!("{expected}\n"), "dig {args:?}");
    }
}

/// What dig prints in a guest; nothing if it is not installed.
fn dig(host: &Host, options: &[&str], args: &[&str]) -> Option<String> {
    if !Path::new(DIG).exists() {
        skip("dig (bind9-dnsutils) is missing");
        return None;
    }
    let guest = host.start(options, Root::Host, &[&[DIG], args].concat());
    Some(guest.wait().success())
}
