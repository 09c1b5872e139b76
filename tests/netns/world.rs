//! The small world itself: what the scenarios take for granted.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::lab::{HOST, HOST6, Host, PROHIBITED, REMOTE, REMOTE6, UNREACHABLE, UNREACHABLE6};
use crate::services::{echo, tcp};

over_any_link![
    both_families_reach_the_remote_machine,
    router_answers_with_errors,
    user_has_no_rights
];

fn both_families_reach_the_remote_machine(host: &Host) {
    let v4 = tcp(host.remote(), (Ipv4Addr::UNSPECIFIED, 7000), echo);
    let v6 = tcp(host.remote(), (Ipv6Addr::UNSPECIFIED, 7000), echo);
    for mut stream in
        [host.dial((REMOTE, 7000)), host.dial((REMOTE6, 7000))].map(|dialled| dialled.expect("a way"))
    {
        stream.write_all(b"x").expect("connected");
        stream.read_exact(&mut [0; 1]).expect("an echo");
    }
    assert_eq!((v4.met(), v6.met()), (1, 1));
    let _back = [
        tcp(host.space(), (HOST, 7000), echo),
        tcp(host.space(), (HOST6, 7000), echo),
    ];
    host.dial_from_remote((HOST, 7000)).expect("a way back");
    host.dial_from_remote((HOST6, 7000)).expect("a way back");
}

fn router_answers_with_errors(host: &Host) {
    for result in [
        host.dial((UNREACHABLE, 80)),
        host.dial((PROHIBITED, 80)),
        host.dial((UNREACHABLE6, 80)),
    ] {
        assert_eq!(
            result.expect_err("no such machine").kind(),
            ErrorKind::HostUnreachable
        );
    }
}

fn user_has_no_rights(host: &Host) {
    let status = host
        .start_as_user(&["/bin/cat", "/proc/self/status"])
        .wait()
        .success();
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(status.contains(&format!("{set}:\t0000000000000000")), "{status}");
    }
}
