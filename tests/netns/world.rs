//! The small world itself: what the scenarios take for granted.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::lab::{HOST, HOST6, Host, PROHIBITED, REMOTE, REMOTE6, UNREACHABLE, UNREACHABLE6};
use crate::services::{echo, tcp};
use crate::stream;

over_any_link![
    both_families_reach_the_remote_machine,
    router_answers_with_errors,
    user_has_no_rights,
    both_ends_make_the_same_stream,
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
    let _back = [tcp(host.space(), (HOST, 7000), echo), tcp(host.space(), (HOST6, 7000), echo)];
    host.dial_from_remote((HOST, 7000)).expect("a way back");
    host.dial_from_remote((HOST6, 7000)).expect("a way back");
}

fn router_answers_with_errors(host: &Host) {
    for target in [IpAddr::from(UNREACHABLE), PROHIBITED.into(), UNREACHABLE6.into()] {
        let kind = host.dial((target, 80)).expect_err("no such machine").kind();
        assert!([ErrorKind::HostUnreachable, ErrorKind::NetworkUnreachable].contains(&kind), "{kind}");
    }
}

fn both_ends_make_the_same_stream(host: &Host) {
    const BYTES: usize = 1_000_001;
    let sink = tcp(host.remote(), (REMOTE, 0), |mut stream| {
        let got = stream::receive(stream);
        let _ = stream.write_all(got.to_string().as_bytes());
    });
    let source = tcp(host.remote(), (REMOTE, 0), |stream| stream::send(stream, BYTES));
    for (mode, service) in [("send", &sink), ("receive", &source)] {
        let (addr, port, bytes) = (REMOTE.to_string(), service.port().to_string(), BYTES.to_string());
        let program = include_str!("../guest/stream.py");
        let argv = ["/usr/bin/python3", "-c", program, mode, &addr, &port, &bytes];
        let seen = host.start_as_user(&argv).wait().success();
        assert_eq!(seen, format!("{mode} {BYTES}\n"));
    }
}

fn user_has_no_rights(host: &Host) {
    let status = host.start_as_user(&["/bin/cat", "/proc/self/status"]).wait().success();
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(status.contains(&format!("{set}:\t0000000000000000")), "{status}");
    }
}
