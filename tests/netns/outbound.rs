//! TCP from the guest to the world: what becomes of a connection attempt, and of the connection.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown};
use std::thread;
use std::time::Duration;

use crate::lab::{
    HOST, Host, PROHIBITED, REMOTE, REMOTE6, Root, SILENT, UNREACHABLE, UNREACHABLE6, ip_batch,
};
use crate::services::{echo, tcp};
use crate::stream;

pub(crate) const CONNECT: &str = include_str!("../guest/connect.py");
const STREAM: &str = include_str!("../guest/stream.py");
const HALF_CLOSE: &str = include_str!("../guest/half_close.py");
/// Milliseconds within which an answer counts as immediate. A host that is told while it still sends its SYN only
/// notices when it repeats it after a second.
const AT_ONCE_MS: u32 = 1500;

over_links![
    connects_over_both_families,
    refusal_is_a_refusal,
    icmp_errors_are_told_as_what_they_are,
    guest_may_close_its_direction_first,
    remote_may_close_its_direction_first,
    slow_reader_gets_everything,
    slow_writer_is_heard_at_once,
];
over_queues![
    connects_over_both_families,
    refusal_is_a_refusal,
    icmp_errors_are_told_as_what_they_are,
    guest_may_close_its_direction_first,
    remote_may_close_its_direction_first,
    slow_reader_gets_everything,
    slow_writer_is_heard_at_once,
];
over_any_link![
    hosts_own_address_is_reachable,
    silent_targets_do_not_stall_others,
    reset_is_told,
    slow_connect_is_no_second_connection,
    host_without_ipv4_serves_ipv6,
    out_of_file_descriptors_is_an_error_that_passes,
];

fn connects_over_both_families(host: &Host) {
    let v4 = tcp(host.remote(), (Ipv4Addr::UNSPECIFIED, 0), echo);
    let v6 = tcp(host.remote(), (Ipv6Addr::UNSPECIFIED, 0), echo);
    let (port4, port6) = (v4.port().to_string(), v6.port().to_string());
    let seen = connect(host, &[], &[&REMOTE.to_string(), &port4, &REMOTE6.to_string(), &port6]);
    assert_eq!(results(&seen), ["connected", "connected"], "{seen}");
    assert_eq!((v4.met(), v6.met()), (1, 1));
}

fn refusal_is_a_refusal(host: &Host) {
    let seen = connect(host, &[], &[&REMOTE.to_string(), "9", &REMOTE6.to_string(), "9"]);
    assert_eq!(results(&seen), ["ECONNREFUSED", "ECONNREFUSED"], "{seen}");
    assert_immediate(&seen);
}

fn icmp_errors_are_told_as_what_they_are(host: &Host) {
    let targets = [UNREACHABLE.to_string(), PROHIBITED.to_string(), UNREACHABLE6.to_string()];
    let seen = connect(host, &[], &[&targets[0], "80", &targets[1], "80", &targets[2], "80"]);
    for result in results(&seen) {
        assert!(["EHOSTUNREACH", "ENETUNREACH", "EACCES"].contains(&result), "{seen}");
    }
    assert_immediate(&seen);
}

fn hosts_own_address_is_reachable(host: &Host) {
    let service = tcp(host.space(), (HOST, 0), echo);
    let seen = connect(host, &[], &[&HOST.to_string(), &service.port().to_string()]);
    assert_eq!(results(&seen), ["connected"], "{seen}");
}

fn silent_targets_do_not_stall_others(host: &Host) {
    let service = tcp(host.remote(), (REMOTE, 0), echo);
    let program = format!(
        "import socket
silent = []
for port in range(1, 101):
    stream = socket.socket(); stream.setblocking(False); stream.connect_ex(('{SILENT}', port)); silent.append(stream)
import sys; sys.argv = ['', '5', '{REMOTE}', '{}']
{CONNECT}",
        service.port()
    );
    let seen = host.python(&[], &program, &[]);
    assert_eq!(results(&seen), ["connected"], "{seen}");
    assert_immediate(&seen);
}

fn guest_may_close_its_direction_first(host: &Host) {
    let service = tcp(host.remote(), (REMOTE, 0), |mut stream| {
        let mut got = Vec::new();
        let _ = stream.read_to_end(&mut got);
        let _ = stream.write_all(&got);
    });
    let port = service.port().to_string();
    let seen = host.python(&[], HALF_CLOSE, &["first", &REMOTE.to_string(), &port]);
    assert_eq!(seen, "complete\n");
}

fn remote_may_close_its_direction_first(host: &Host) {
    let service = tcp(host.remote(), (REMOTE, 0), |mut stream| {
        let big = b"0123456789abcdef".repeat(65_536);
        let _ = stream.write_all(&big);
        let _ = stream.shutdown(Shutdown::Write);
        let mut got = Vec::new();
        let _ = stream.read_to_end(&mut got);
        assert_eq!(got.len(), big.len());
    });
    let port = service.port().to_string();
    let seen = host.python(&[], HALF_CLOSE, &["second", &REMOTE.to_string(), &port]);
    assert_eq!(seen, "complete\n");
}

fn slow_reader_gets_everything(host: &Host) {
    const BYTES: usize = 20_000_000;
    let service = tcp(host.remote(), (REMOTE, 0), |mut stream| {
        // Long enough for every buffer on the way to fill.
        thread::sleep(Duration::from_secs(1));
        let got = stream::receive(stream);
        let _ = stream.write_all(got.to_string().as_bytes());
    });
    let (port, bytes) = (service.port().to_string(), BYTES.to_string());
    let seen = host.python(&[], STREAM, &["send", &REMOTE.to_string(), &port, &bytes]);
    assert_eq!(seen, format!("send {BYTES}\n"));
}

fn slow_writer_is_heard_at_once(host: &Host) {
    let service = tcp(host.remote(), (REMOTE, 0), echo);
    let program = "import socket, sys, time
stream = socket.create_connection((sys.argv[1], int(sys.argv[2])))
slowest = 0
for number in range(50):
    time.sleep(0.01)
    start = time.monotonic()
    stream.sendall(b'%d' % (number % 10)); stream.recv(1)
    slowest = max(slowest, time.monotonic() - start)
print('in time' if slowest < 0.5 else slowest)";
    let port = service.port().to_string();
    assert_eq!(host.python(&[], program, &[&REMOTE.to_string(), &port]), "in time\n");
}

fn reset_is_told(host: &Host) {
    let service = tcp(host.remote(), (REMOTE, 0), |mut stream| {
        let _ = stream.read(&mut [0; 1]);
        let socket = socket2::SockRef::from(stream);
        let _ = socket.set_linger(Some(Duration::ZERO));
    });
    let program = "import socket, sys
stream = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10)
stream.sendall(b'x')
try: print('end of stream' if stream.recv(1) == b'' else 'data')
except ConnectionResetError: print('reset')";
    let port = service.port().to_string();
    assert_eq!(host.python(&[], program, &[&REMOTE.to_string(), &port]), "reset\n");
}

fn slow_connect_is_no_second_connection(host: &Host) {
    // The way to the remote machine loses the first SYNs; the guest's own are repeated meanwhile.
    let service = tcp(host.remote(), (REMOTE, 0), echo);
    let port = service.port().to_string();
    host.cut_remote(true);
    let program = CONNECT.to_owned();
    let guest = host.start_python(&[], &program, &["20", &REMOTE.to_string(), &port]);
    thread::sleep(Duration::from_millis(2500));
    host.cut_remote(false);
    let seen = guest.wait().success();
    assert_eq!(results(&seen), ["connected"], "{seen}");
    assert_eq!(service.met(), 1);
}

fn host_without_ipv4_serves_ipv6(host: &Host) {
    ip_batch(host.space(), "addr del 192.0.2.2/24 dev eth0\n").expect("an address");
    let service = tcp(host.remote(), (REMOTE6, 0), echo);
    let port = service.port().to_string();
    let seen = connect(host, &[], &[&REMOTE.to_string(), &port, &REMOTE6.to_string(), &port]);
    assert_eq!(results(&seen), ["ENETUNREACH", "connected"], "{seen}");
    assert_immediate(&seen);
}

fn out_of_file_descriptors_is_an_error_that_passes(host: &Host) {
    let service = tcp(host.remote(), (REMOTE, 0), echo);
    let program = "import resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
target = (sys.argv[1], int(sys.argv[2]))
def attempt():
    try: return socket.create_connection(target, timeout=10)
    except socket.timeout: print('silence')
    except OSError: return None
held = []
while len(held) < 150 and (stream := attempt()): held.append(stream)
print('failed' if len(held) < 150 else 'no limit met')
for stream in held: stream.close()
for _ in range(100):
    time.sleep(0.05)
    if stream := attempt():
        stream.sendall(b'x'); print('echo', stream.recv(1)); break";
    let (addr, port) = (REMOTE.to_string(), service.port().to_string());
    let rnet = host.argv(&[], Root::Host, &["/usr/bin/python3", "-c", program, &addr, &port]);
    let limited = [&["/usr/bin/prlimit", "--nofile=100:100", "--"], &rnet[..]].concat();
    let outcome = host.start_as_user(&limited).wait();
    // The guest has the same limit, less what rnet keeps for itself: whichever is met first, both survive.
    assert!(outcome.stdout.starts_with("failed\necho b'x'\n"), "{outcome}");
}

fn connect(host: &Host, options: &[&str], targets: &[&str]) -> String {
    host.python(options, CONNECT, &[&["5"], targets].concat())
}

fn results(seen: &str) -> Vec<&str> {
    seen.lines().map(|line| line.split(' ').nth(2).unwrap_or("?")).collect()
}

fn assert_immediate(seen: &str) {
    for line in seen.lines() {
        let ms = line.rsplit(' ').next().and_then(|ms| ms.parse::<u32>().ok());
        assert!(ms.is_some_and(|ms| ms < AT_ONCE_MS), "slow: {line}");
    }
}
