//! Published ports: who reaches the guest, as whom, and what happens when it does not want to.

use std::io::{Error, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use crate::lab::{HOST, HOST6, Host, REMOTE, REMOTE6, Root};
use crate::process::{Process, wait_for, wait_within};
use crate::stream;

const SERVE: &str = include_str!("../guest/serve.py");
const STREAM: &str = include_str!("../guest/stream.py");
const UDP: &str = include_str!("../guest/udp.py");
const HALF_CLOSE: &str = include_str!("../guest/half_close.py");

over_links![
    guest_sees_the_clients_real_address,
    loopback_client_appears_as_the_gateway,
    refusal_by_the_guest_reaches_the_client,
    client_may_close_its_direction_first,
    guest_may_close_its_direction_first,
    slow_client_gets_everything,
    udp_answers_every_client,
    port_is_free_again_at_once,
];
over_queues![
    guest_sees_the_clients_real_address,
    loopback_client_appears_as_the_gateway,
    refusal_by_the_guest_reaches_the_client,
    client_may_close_its_direction_first,
    guest_may_close_its_direction_first,
    slow_client_gets_everything,
    udp_answers_every_client,
    port_is_free_again_at_once,
];
over_any_link![
    one_address_can_be_published,
    range_is_published,
    random_port_is_printed,
    conflict_names_the_port_and_its_holder,
    privileged_port_names_the_sysctl,
    foreign_address_is_named,
    port_is_taken_before_the_command_starts,
];

fn guest_sees_the_clients_real_address(host: &Host) {
    let guest = serve(host, &["-p", "8080:80"], "80");
    assert_echo(&host.dial_from_remote((HOST, 8080)).expect("published"));
    wait_for_client(&guest, &REMOTE.to_string());
    assert_echo(&host.dial_from_remote((HOST6, 8080)).expect("published"));
    wait_for_client(&guest, &REMOTE6.to_string());
}

fn loopback_client_appears_as_the_gateway(host: &Host) {
    let guest = serve(host, &["--no-splice", "-p", "8080:80"], "80");
    assert_echo(&host.dial((Ipv4Addr::LOCALHOST, 8080)).expect("published"));
    wait_for_client(&guest, "10.0.2.2");
    assert_echo(&host.dial((Ipv6Addr::LOCALHOST, 8080)).expect("published"));
    wait_for_client(&guest, "fd00::2");
}

fn one_address_can_be_published(host: &Host) {
    let _guest = serve(host, &["-p", "127.0.0.1:8080:80", "-p", "[::1]:8081:80"], "80");
    assert_echo(&host.dial((Ipv4Addr::LOCALHOST, 8080)).expect("published"));
    assert_echo(&host.dial((Ipv6Addr::LOCALHOST, 8081)).expect("published"));
    for closed in [
        SocketAddr::from((HOST, 8080)),
        (Ipv6Addr::LOCALHOST, 8080).into(),
        (Ipv4Addr::LOCALHOST, 8081).into(),
    ] {
        let error = host.dial(closed).expect_err("not published");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{closed}");
    }
}

fn range_is_published(host: &Host) {
    let _guest = serve(host, &["-p", "8080-8082:79-81"], "80");
    assert_echo(&host.dial((HOST, 8081)).expect("published"));
    assert_refused(host, 8080);
    assert_refused(host, 8082);
}

fn random_port_is_printed(host: &Host) {
    let guest = serve(host, &["-p", "80"], "80");
    let printed = guest.stdout() + &guest.stderr();
    let ports = printed.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse::<u16>().ok());
    let served = |&port: &u16| port >= 1024 && host.dial((HOST, port)).is_ok();
    let port = ports.into_iter().find(served).unwrap_or_else(|| panic!("no port in: {printed}"));
    assert_echo(&host.dial((HOST, port)).expect("published"));
    assert_echo(&host.dial((HOST6, port)).expect("the same number on both families"));
}

fn refusal_by_the_guest_reaches_the_client(host: &Host) {
    let _guest = host.start(&["-p", "8080:9"], Root::Busybox, &["sleep", "1000"]);
    wait_for("rnet to listen", || match host.dial((HOST, 8080)) {
        Ok(client) => {
            assert_reset(client);
            Some(())
        }
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => None,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            Some(())
        }
    });
    assert_refused(host, 8080);
}

fn client_may_close_its_direction_first(host: &Host) {
    let guest = ready(host.start_python(&["-p", "8080:80"], HALF_CLOSE, &["serve", "80"]));
    let big = b"0123456789abcdef".repeat(65_536);
    let mut client = host.dial_from_remote((HOST, 8080)).expect("published");
    client.write_all(&big).expect("the guest reads");
    client.shutdown(Shutdown::Write).expect("connected");
    let mut got = Vec::new();
    client.read_to_end(&mut got).expect("the other direction is open");
    assert_eq!(got.len(), big.len());
    assert_eq!(guest.wait().success(), "ready\ncomplete\n");
}

fn guest_may_close_its_direction_first(host: &Host) {
    let guest = host.start_python(
        &["-p", "8080:80"],
        "import socket
listener = socket.create_server(('', 80)); print('ready', flush=True)
stream = listener.accept()[0]
stream.sendall(b'x' * 1000000); stream.shutdown(socket.SHUT_WR)
print(len(b''.join(iter(lambda: stream.recv(65536), b''))))",
        &[],
    );
    let guest = ready(guest);
    send_back_what_a_half_closed_guest_sent(guest, host.dial((HOST, 8080)).expect("published"));
}

/// The guest sends a million bytes, finishes, and counts what comes back.
pub(crate) fn send_back_what_a_half_closed_guest_sent(guest: Process, mut client: TcpStream) {
    let mut got = Vec::new();
    client.read_to_end(&mut got).expect("connected");
    assert_eq!(got.len(), 1_000_000);
    client.write_all(&got).expect("the other direction is open");
    drop(client);
    assert_eq!(guest.wait().success(), "ready\n1000000\n");
}

fn slow_client_gets_everything(host: &Host) {
    const BYTES: usize = 20_000_000;
    let _guest = ready(host.start_python(&["-p", "8080:80"], STREAM, &["serve", "80", &BYTES.to_string()]));
    let mut client = host.dial_from_remote((HOST, 8080)).expect("published");
    client.write_all(b"r").expect("connected");
    // Long enough for every buffer on the way to fill.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(stream::receive(&client), BYTES);
}

fn udp_answers_every_client(host: &Host) {
    let guest = ready(host.start_python(&["-p", "5000:5001/udp"], UDP, &["serve", "5001"]));
    for (addr, appears_as) in [
        (SocketAddr::from((Ipv4Addr::LOCALHOST, 5000)), "10.0.2.2".to_owned()),
        ((Ipv6Addr::LOCALHOST, 5000).into(), "fd00::2".to_owned()),
        ((HOST, 5000).into(), HOST.to_string()),
    ] {
        let socket = host.space().within(move || client_of(addr));
        assert_udp_echo(&socket);
        wait_for_client(&guest, &appears_as);
    }
    for (addr, appears_as) in
        [(SocketAddr::from((HOST, 5000)), REMOTE.to_string()), ((HOST6, 5000).into(), REMOTE6.to_string())]
    {
        let socket = host.remote().within(move || client_of(addr));
        assert_udp_echo(&socket);
        wait_for_client(&guest, &appears_as);
    }
}

fn port_is_free_again_at_once(host: &Host) {
    for _ in 0..3 {
        let guest = ready(host.start_python(&["-p", "8080:80"], SERVE, &["80", "1"]));
        assert_echo(&host.dial((HOST, 8080)).expect("published"));
        guest.wait().success();
    }
}

fn conflict_names_the_port_and_its_holder(host: &Host) {
    let guest = serve(host, &["-p", "8080:80"], "80");
    let outcome = host.run(&["-p", "8080:80"], Root::Busybox, &["echo", "started"]);
    assert_eq!((outcome.code(), outcome.stdout.as_str()), (125, ""), "{outcome}");
    for named in ["8080", "0.0.0.0", "in use", &guest.pid().to_string()] {
        assert!(outcome.stderr.contains(named), "no {named}: {outcome}");
    }
}

fn privileged_port_names_the_sysctl(host: &Host) {
    let outcome = host.run(&["-p", "80:80"], Root::Busybox, &["echo", "started"]);
    assert_eq!((outcome.code(), outcome.stdout.as_str()), (125, ""), "{outcome}");
    assert!(outcome.stderr.contains("net.ipv4.ip_unprivileged_port_start=80"), "{outcome}");
}

fn foreign_address_is_named(host: &Host) {
    let outcome = host.run(&["-p", "203.0.113.77:8080:80"], Root::Busybox, &["echo", "started"]);
    assert_eq!((outcome.code(), outcome.stdout.as_str()), (125, ""), "{outcome}");
    assert!(outcome.stderr.contains("203.0.113.77"), "{outcome}");
}

fn port_is_taken_before_the_command_starts(host: &Host) {
    let mut guest = host.start(&["-p", "8080:80"], Root::Busybox, &["sh", "-c", "echo ready; cat"]);
    guest.wait_for_output("ready");
    match host.dial((HOST, 8080)) {
        Ok(client) => assert_reset(client),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "rnet does not listen"),
    }
}

/// An echo server in the guest, ready.
pub(crate) fn serve(host: &Host, options: &[&str], port: &str) -> Process {
    ready(host.start_python(options, SERVE, &[port]))
}

pub(crate) fn ready(mut guest: Process) -> Process {
    guest.wait_for_output("ready\n");
    guest
}

pub(crate) fn wait_for_client(guest: &Process, addr: &str) {
    let line = format!("client {addr}");
    let seen =
        wait_within(Duration::from_secs(5), || guest.stdout().lines().any(|seen| seen == line).then_some(()));
    assert!(seen.is_some(), "no {line:?} in: {}", guest.stdout());
}

pub(crate) fn assert_echo(mut client: &TcpStream) {
    client.write_all(b"hello").expect("connected");
    let mut echoed = [0; 5];
    client.read_exact(&mut echoed).expect("an echo");
    assert_eq!(&echoed, b"hello");
}

fn assert_refused(host: &Host, port: u16) {
    match host.dial((HOST, port)) {
        Ok(client) => assert_reset(client),
        Err(error) => assert!(is_refusal(&error), "{error}"),
    }
}

fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset)
}

pub(crate) fn assert_reset(mut client: TcpStream) {
    let start = Instant::now();
    let result = client.read(&mut [0; 1]);
    let error = result.expect_err("an end of stream is no refusal");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

fn client_of(addr: SocketAddr) -> UdpSocket {
    let any: SocketAddr = match addr {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).expect("an ephemeral port");
    // Answers from another address than was asked do not arrive.
    socket.connect(addr).expect("a route");
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("not zero");
    socket
}

fn assert_udp_echo(socket: &UdpSocket) {
    wait_for(&format!("an answer from {:?}", socket.peer_addr()), || {
        socket.send(b"hello").ok()?;
        let mut echoed = [0; 16];
        let len = socket.recv(&mut echoed).ok()?;
        assert_eq!(&echoed[..len], b"hello");
        Some(())
    });
}
