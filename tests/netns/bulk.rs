//! Byte-exact transfers: out, in, and both ways through a published port, over both families, at every MTU.
//!
//! `RNET_TEST_BULK_MB` sets the size of each transfer.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::time::Duration;

use crate::lab::{HOST, HOST6, Host, REMOTE, REMOTE6};
use crate::services::tcp;
use crate::stream;

const STREAM: &str = include_str!("../guest/stream.py");
const DEFAULT_MB: usize = 32;
const LIMIT: Duration = Duration::from_secs(300);

over_queues![mtu_1500, many_streams_both_ways];
over_links![mtu_576, mtu_1280, mtu_1500, mtu_9000, mtu_65520, many_streams_both_ways];

fn mtu_576(host: &Host) {
    // Too small for IPv6.
    transfer(host, &["--mtu", "576", "--no-ipv6"], &[(HOST.into(), REMOTE.into())]);
}

fn mtu_1280(host: &Host) {
    transfer_over_both(host, "1280");
}

fn mtu_1500(host: &Host) {
    transfer_over_both(host, "1500");
}

fn mtu_9000(host: &Host) {
    transfer_over_both(host, "9000");
}

fn mtu_65520(host: &Host) {
    transfer_over_both(host, "65520");
}

fn many_streams_both_ways(host: &Host) {
    let bytes = megabytes() * 1_000_000 / 4;
    let sink = tcp(host.remote(), (REMOTE, 0), |mut stream| {
        let got = stream::receive(stream);
        let _ = stream.write_all(got.to_string().as_bytes());
    });
    let source = tcp(host.remote(), (REMOTE, 0), move |stream| stream::send(stream, bytes));
    let program = "import subprocess, sys
program, addr, sink, source, total = sys.argv[1:]
one = lambda mode, port: subprocess.Popen([sys.executable, '-c', program, mode, addr, port, total])
ends = [one('send', sink) for _ in range(4)] + [one('receive', source) for _ in range(4)]
print(sum(end.wait() != 0 for end in ends), 'failed')";
    let (addr, sink, source) = (REMOTE.to_string(), sink.port().to_string(), source.port().to_string());
    let args = [STREAM, &addr, &sink, &source, &bytes.to_string()];
    let outcome = host.start_python(&["--mtu", "1500"], program, &args).wait_at_most(LIMIT);
    assert!(outcome.stdout.ends_with("0 failed\n"), "{outcome}");
}

fn transfer_over_both(host: &Host, mtu: &str) {
    let families = [(HOST.into(), REMOTE.into()), (HOST6.into(), REMOTE6.into())];
    transfer(host, &["--mtu", mtu], &families);
}

fn transfer(host: &Host, options: &[&str], families: &[(IpAddr, IpAddr)]) {
    let bytes = megabytes() * 1_000_000;
    for &(own, remote) in families {
        outbound(host, options, remote, bytes);
        published(host, options, own, bytes);
    }
}

fn outbound(host: &Host, options: &[&str], remote: IpAddr, bytes: usize) {
    let sink = tcp(host.remote(), (remote, 0), |mut stream| {
        let got = stream::receive(stream);
        let _ = stream.write_all(got.to_string().as_bytes());
    });
    let source = tcp(host.remote(), (remote, 0), move |stream| stream::send(stream, bytes));
    for (mode, service) in [("send", &sink), ("receive", &source)] {
        let (addr, port) = (remote.to_string(), service.port().to_string());
        let guest = host.start_python(options, STREAM, &[mode, &addr, &port, &bytes.to_string()]);
        let seen = guest.wait_at_most(LIMIT).success();
        assert_eq!(seen, format!("{mode} {bytes}\n"), "{}", service.addr());
    }
}

fn published(host: &Host, options: &[&str], own: IpAddr, bytes: usize) {
    let options = [options, &["-p", "8080:80"]].concat();
    let mut guest = host.start_python(&options, STREAM, &["serve", "80", &bytes.to_string()]);
    guest.wait_for_output("ready\n");
    let dial = |letter| -> TcpStream {
        let mut client = host.dial_from_remote((own, 8080)).expect("published");
        client.write_all(letter).expect("connected");
        client
    };
    let mut client = dial(b"s");
    stream::send(&client, bytes);
    let mut count = String::new();
    client.read_to_string(&mut count).expect("the count");
    assert_eq!(count, bytes.to_string(), "{}", guest.stderr());
    assert_eq!(stream::receive(&dial(b"r")), bytes);
}

fn megabytes() -> usize {
    let asked = std::env::var("RNET_TEST_BULK_MB").ok();
    asked.and_then(|mb| mb.parse().ok()).unwrap_or(DEFAULT_MB)
}
