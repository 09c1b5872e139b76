//! Several workers on the queues of one TAP: what must hold whichever of them gets a packet.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use crate::lab::{HOST, Host, Link, REMOTE, Root, play};
use crate::process::{Process, wait_for, wait_within};
use crate::services::{Service, tcp, udp};
use crate::stream;

const STREAM: &str = include_str!("../guest/stream.py");
const SERVE: &str = include_str!("../guest/serve.py");
const UDP: &str = include_str!("../guest/udp.py");
const CROWD: &str = include_str!("../guest/crowd.py");
const LIMIT: Duration = Duration::from_secs(120);
/// Bytes of all streams of one transfer together.
const TRANSFER_BYTES: usize = 64_000_000;
const CLIENTS: usize = 200;

over_queues![
    streams_out_and_in_are_exact,
    published_streams_are_exact,
    udp_sockets_are_the_same_to_everybody,
    two_hundred_clients_are_served_over_tcp,
    two_hundred_clients_are_served_over_udp,
    clients_of_a_closed_port_are_reset,
    pauses_do_no_harm,
    all_workers_end_with_the_command,
];

#[test]
fn a_link_with_one_queue_says_so() {
    for link in [Link::TapPlain, Link::Packet] {
        play(link, |host| {
            let outcome = host.run(&["--workers", "2"], Root::Busybox, &["true"]);
            assert_eq!(outcome.code(), 0, "{outcome}");
            let told = outcome.stderr.contains("queues=1") && outcome.stderr.contains("asked=2");
            assert!(told, "{outcome}");
        });
    }
}

#[test]
fn without_the_option_a_link_with_one_queue_is_no_news() {
    play(Link::Packet, |host| {
        let outcome = host.run(&[], Root::Busybox, &["true"]);
        assert_eq!(outcome.stderr, "", "{outcome}");
    });
}

fn streams_out_and_in_are_exact(host: &Host) {
    for streams in [8, 64] {
        let bytes = TRANSFER_BYTES / streams;
        let (sink, source) = ends(host, bytes);
        let program = "import subprocess, sys
program, count, addr, sink, source, total = sys.argv[1:]
one = lambda mode, port: subprocess.Popen([sys.executable, '-c', program, mode, addr, port, total])
ends = [one(*end) for end in (('send', sink), ('receive', source)) for _ in range(int(count) // 2)]
print(sum(end.wait() != 0 for end in ends), 'failed')";
        let (addr, count, bytes) = (REMOTE.to_string(), streams.to_string(), bytes.to_string());
        let (sink, source) = (sink.port().to_string(), source.port().to_string());
        let args = [STREAM, &count, &addr, &sink, &source, &bytes];
        let outcome = host.start_python(&[], program, &args).wait_at_most(LIMIT);
        assert!(outcome.stdout.ends_with("0 failed\n"), "{streams} streams: {outcome}");
    }
}

fn published_streams_are_exact(host: &Host) {
    for streams in [8, 64] {
        let bytes = TRANSFER_BYTES / streams;
        let program = "import os, runpy, sys
program, total = sys.argv[1:]
for port in range(9000, 9004):
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, '-c', program, 'serve', str(port), total])
while True:
    os.wait()";
        let mut guest =
            host.start_python(&["-p", "8000-8003:9000-9003"], program, &[STREAM, &bytes.to_string()]);
        guest.wait_for_output("ready\nready\nready\nready\n");
        thread::scope(|scope| {
            for number in 0..streams {
                let client = host.dial_from_remote((HOST, 8000 + number as u16 % 4)).expect("published");
                scope.spawn(move || converse(client, number % 8 < 4, bytes));
            }
        });
    }
}

/// One transfer with the server of `stream.py`.
fn converse(mut client: TcpStream, sends: bool, bytes: usize) {
    client.write_all(if sends { b"s" } else { b"r" }).expect("connected");
    if !sends {
        return assert_eq!(stream::receive(&client), bytes);
    }
    stream::send(&client, bytes);
    let mut count = String::new();
    client.read_to_string(&mut count).expect("the count");
    assert_eq!(count, bytes.to_string());
}

fn udp_sockets_are_the_same_to_everybody(host: &Host) {
    let tell = |datagram: &[u8], from: SocketAddr| Some(format!("{from} {}", datagram.len()).into_bytes());
    let services: Vec<Service> = (0..5).map(|n| udp(host.remote(), (REMOTE, 7000 + n), tell)).collect();
    let ports: Vec<String> = services.iter().map(|service| service.port().to_string()).collect();
    let addr = REMOTE.to_string();
    let args: Vec<&str> = ["100", &addr].into_iter().chain(ports.iter().map(String::as_str)).collect();
    let outcome = host.start_python(&["--mtu", "1500"], CROWD, &args).wait_at_most(LIMIT);
    assert_eq!(outcome.success(), "answers 1000\n");
}

fn two_hundred_clients_are_served_over_tcp(host: &Host) {
    let mut guest = host.start_python(&["-p", "8080:80"], SERVE, &["80"]);
    guest.wait_for_output("ready\n");
    let clients: Vec<TcpStream> =
        (0..CLIENTS).map(|_| host.dial_from_remote((HOST, 8080)).expect("published")).collect();
    for (number, mut client) in clients.iter().enumerate() {
        client.write_all(&number.to_be_bytes()).expect("connected");
    }
    for (number, mut client) in clients.iter().enumerate() {
        let mut echoed = [0; 8];
        client.read_exact(&mut echoed).unwrap_or_else(|error| panic!("client {number}: {error}"));
        assert_eq!(usize::from_be_bytes(echoed), number);
    }
    wait_for("each client under its own address", || {
        let seen = guest.stdout().matches(&format!("client {REMOTE}\n")).count();
        (seen == CLIENTS).then_some(())
    });
}

fn two_hundred_clients_are_served_over_udp(host: &Host) {
    let mut guest = host.start_python(&["-p", "5000-5003:6000-6003/udp"], REFLECT_MANY, &[UDP]);
    guest.wait_for_output("ready\nready\nready\nready\n");
    let clients: Vec<UdpSocket> = host
        .remote()
        .within(|| (0..CLIENTS).map(|_| UdpSocket::bind((REMOTE, 0)).expect("a free port")).collect());
    for (number, client) in clients.iter().enumerate() {
        client.connect((HOST, 5000 + number as u16 % 4)).expect("a route");
        client.set_read_timeout(Some(Duration::from_secs(10))).expect("not zero");
    }
    for round in 0..5 {
        // As many at once as the guest's socket is sure to hold.
        for (chunk, clients) in clients.chunks(50).enumerate() {
            let text = |number: usize| format!("{round} {chunk} {number}").into_bytes();
            for (number, client) in clients.iter().enumerate() {
                client.send(&text(number)).expect("sent");
            }
            for (number, client) in clients.iter().enumerate() {
                let mut buffer = [0; 100];
                let len = client.recv(&mut buffer).expect("it comes back");
                assert_eq!(buffer[..len], text(number));
            }
        }
    }
}

/// `udp.py reflect` on four ports.
const REFLECT_MANY: &str = "import os, sys
for port in range(6000, 6004):
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, '-c', sys.argv[1], 'reflect', str(port)])
while True:
    os.wait()";

fn clients_of_a_closed_port_are_reset(host: &Host) {
    let mut guest = host.start(&["-p", "8080:80"], Root::Busybox, &["sh", "-c", "echo ready; cat"]);
    guest.wait_for_output("ready\n");
    for number in 0..50 {
        let reset = host.dial((HOST, 8080)).and_then(|mut client| {
            client.set_read_timeout(Some(Duration::from_secs(10)))?;
            client.read(&mut [0; 1])
        });
        let error = reset.expect_err("nobody listens");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "client {number}");
    }
}

/// The kernel forgets after three seconds on which queue a flow was.
fn pauses_do_no_harm(host: &Host) {
    const BYTES: usize = 8_000_000;
    let sink = tcp(host.remote(), (REMOTE, 0), |mut stream| {
        let got = stream::receive(stream);
        let _ = stream.write_all(got.to_string().as_bytes());
    });
    let program = "import sys, time, socket
program, addr, port, total = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
sys.argv = ['stream.py', 'none']
names = {}
exec(program.rsplit('main(*', 1)[0], names)
streams = [socket.create_connection((addr, port)) for _ in range(16)]
for half in (0, total // 2):
    for stream in streams:
        sent = half
        while sent < half + total // 2:
            sent += stream.send(names['part'](sent, min(names['CHUNK'], half + total // 2 - sent)))
    time.sleep(4 if half == 0 else 0)
for stream in streams:
    stream.shutdown(socket.SHUT_WR)
print(sum(int(stream.makefile().read()) for stream in streams))";
    let args = [STREAM, &REMOTE.to_string(), &sink.port().to_string(), &(BYTES / 16).to_string()];
    let outcome = host.start_python(&[], program, &args).wait_at_most(LIMIT);
    assert_eq!(outcome.success(), format!("{BYTES}\n"));
}

fn all_workers_end_with_the_command(host: &Host) {
    let mut guest = host.start(&[], Root::Busybox, &["sh", "-c", "echo ready; read line; exit 7"]);
    guest.wait_for_output("ready\n");
    let expected: usize = match host.link() {
        Link::Queues(workers) => workers.parse().expect("a number"),
        other => panic!("{other:?} has one queue"),
    };
    // A thread gives itself its name, which it may not have come to yet.
    wait_for("every worker", || (workers(&guest) == expected).then_some(()));
    guest.write("go\n");
    let ended = wait_within(Duration::from_secs(5), || guest.has_ended().then_some(()));
    assert!(ended.is_some(), "the workers stay");
    assert_eq!(guest.wait().code(), 7);
}

/// Threads of rnet that are workers.
fn workers(rnet: &Process) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", rnet.pid())).expect("it runs");
    let names = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.starts_with("rnet-worker")).count()
}

/// A service that counts a stream, and one that sends `bytes` of it.
fn ends(host: &Host, bytes: usize) -> (Service, Service) {
    let sink = tcp(host.remote(), (REMOTE, 0), |mut stream| {
        let got = stream::receive(stream);
        let _ = stream.write_all(got.to_string().as_bytes());
    });
    (sink, tcp(host.remote(), (REMOTE, 0), move |stream| stream::send(stream, bytes)))
}
