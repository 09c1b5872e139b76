//! UDP and echo requests from the guest, and the ICMP errors that answer them.

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

use crate::lab::{Host, PROHIBITED, REMOTE, REMOTE6, ROUTER, Root, UNREACHABLE, UNREACHABLE6, skip};
use crate::services::{udp, udp_echo};

const UDP: &str = include_str!("../guest/udp.py");

over_links![
    datagrams_of_every_size_come_back,
    answers_may_come_from_anywhere,
    icmp_errors_reach_the_sender,
    bursts_of_datagrams_come_back_whole_and_in_order,
    bursts_pass_a_published_port_whole_and_in_order,
    an_error_amid_a_burst_reaches_the_sender,
    echo_requests_go_beyond_the_gateway,
    traceroute_shows_the_way,
];
over_queues![
    datagrams_of_every_size_come_back,
    answers_may_come_from_anywhere,
    icmp_errors_reach_the_sender,
    bursts_of_datagrams_come_back_whole_and_in_order,
    bursts_pass_a_published_port_whole_and_in_order,
    an_error_amid_a_burst_reaches_the_sender,
    echo_requests_go_beyond_the_gateway,
    traceroute_shows_the_way,
    mapping_is_one_port_for_all_destinations,
];
over_any_link![forbidden_ping_is_one_warning, mapping_is_one_port_for_all_destinations,];

fn datagrams_of_every_size_come_back(host: &Host) {
    let v4 = udp_echo(host.remote(), (Ipv4Addr::UNSPECIFIED, 7000));
    let v6 = udp_echo(host.remote(), (Ipv6Addr::UNSPECIFIED, 7001));
    for mtu in ["1500", "65520"] {
        for (addr, port) in [(REMOTE.to_string(), v4.port()), (REMOTE6.to_string(), v6.port())] {
            for size in ["0", "1", "1472", "1473", "9000", "60000", "65507"] {
                let args = ["echo", &addr, &port.to_string(), size];
                let seen = host.python(&["--mtu", mtu], UDP, &args);
                assert_eq!(seen, format!("same {addr}\n"), "{size} bytes at MTU {mtu}");
            }
        }
    }
}

/// What is sent at once; the sizes of datagrams that follow each other.
const SIZES: [&[&str]; 4] = [&["64"], &["1400"], &["64", "1400", "700", "700", "700", "3"], &["8000"]];

fn bursts_of_datagrams_come_back_whole_and_in_order(host: &Host) {
    let v4 = udp_echo(host.remote(), (Ipv4Addr::UNSPECIFIED, 7000));
    let v6 = udp_echo(host.remote(), (Ipv6Addr::UNSPECIFIED, 7001));
    for mtu in ["1500", "65520"] {
        for (addr, port) in [(REMOTE.to_string(), v4.port()), (REMOTE6.to_string(), v6.port())] {
            for sizes in SIZES {
                let port = port.to_string();
                let args = [&["blast", &addr, &port, "625"], sizes].concat();
                let seen = host.python(&["--mtu", mtu], UDP, &args);
                assert_eq!(seen, "2500\n", "{sizes:?} to {addr} at MTU {mtu}");
            }
        }
    }
}

fn bursts_pass_a_published_port_whole_and_in_order(host: &Host) {
    let mut guest = host.start_python(&["-p", "5000:5001/udp"], UDP, &["reflect", "5001"]);
    guest.wait_for_output("ready\n");
    let clients =
        host.remote().within(|| [(); 4].map(|()| UdpSocket::bind((REMOTE, 0)).expect("a free port")));
    for client in &clients {
        client.connect((crate::lab::HOST, 5000)).expect("a route");
        client.set_read_timeout(Some(Duration::from_secs(10))).expect("not zero");
        // A burst would overflow the queue of a neighbour that is still being looked for.
        client.send(b"first").expect("sent");
        client.recv(&mut [0; 5]).expect("it comes back");
    }
    for size in [64, 1400] {
        for round in 0..40u8 {
            let sent: Vec<Vec<u8>> = (0..16).map(|n| vec![round % 10 * 25 + n; size]).collect();
            let send = |client: &UdpSocket| sent.iter().for_each(|bytes| drop(client.send(bytes)));
            clients.iter().for_each(send);
            for (client, expected) in
                clients.iter().flat_map(|client| sent.iter().map(move |sent| (client, sent)))
            {
                let mut buffer = [0; 2000];
                let len = client.recv(&mut buffer).expect("it comes back");
                assert!(buffer[..len] == *expected, "{len} bytes, round {round}");
            }
        }
    }
}

fn an_error_amid_a_burst_reaches_the_sender(host: &Host) {
    for addr in [REMOTE.to_string(), REMOTE6.to_string()] {
        assert_eq!(host.python(&[], UDP, &["volley", &addr, "9"]), "ECONNREFUSED\n", "{addr}");
    }
}

fn answers_may_come_from_anywhere(host: &Host) {
    // The answer leaves from another port than was asked.
    let other = host.remote().within(|| UdpSocket::bind((REMOTE, 7002)).expect("a free port"));
    let _service = udp(host.remote(), (REMOTE, 7000), move |datagram, from| {
        let _ = other.send_to(datagram, from);
        None
    });
    let seen = host.python(&[], UDP, &["echo", &REMOTE.to_string(), "7000", "100"]);
    assert_eq!(seen, format!("same {REMOTE}\n"));
}

fn mapping_is_one_port_for_all_destinations(host: &Host) {
    let tell = |_: &[u8], from: std::net::SocketAddr| Some(from.to_string().into_bytes());
    let _first = udp(host.remote(), (REMOTE, 7000), tell);
    let _second = udp(host.remote(), (REMOTE, 7001), tell);
    let _third = udp(host.space(), (crate::lab::HOST, 7000), tell);
    let program = "import socket, sys
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); client.settimeout(5)
seen = set()
for target in zip(sys.argv[1::2], map(int, sys.argv[2::2])):
    client.sendto(b'?', target); seen.add(client.recv(100).rsplit(b':')[-1])
print(len(seen))";
    let (remote, own) = (REMOTE.to_string(), crate::lab::HOST.to_string());
    let seen = host.python(&[], program, &[&remote, "7000", &remote, "7001", &own, "7000"]);
    assert_eq!(seen, "1\n");
}

fn icmp_errors_reach_the_sender(host: &Host) {
    for (addr, expected) in [
        (REMOTE.to_string(), "ECONNREFUSED\n"),
        (REMOTE6.to_string(), "ECONNREFUSED\n"),
        (UNREACHABLE.to_string(), "EHOSTUNREACH\n"),
        (PROHIBITED.to_string(), "EHOSTUNREACH\n"),
        (UNREACHABLE6.to_string(), "ENETUNREACH\n"),
    ] {
        assert_eq!(host.python(&[], UDP, &["send", &addr, "9"]), expected, "{addr}");
    }
}

fn echo_requests_go_beyond_the_gateway(host: &Host) {
    let seen = host.sh(&[], &format!("ping -c 2 -W 5 {REMOTE} && ping -6 -c 2 -W 5 {REMOTE6}"));
    // One router on the way takes one from the TTL, and the gateway another.
    assert!(seen.contains(&format!("from {REMOTE}")), "{seen}");
    assert!(seen.contains(&format!("from {REMOTE6}")), "{seen}");
    assert_eq!(seen.matches("2 packets received").count(), 2, "{seen}");
}

fn forbidden_ping_is_one_warning(host: &Host) {
    if !host.allow_ping(false) {
        return skip("in a user namespace with one id, pings once allowed cannot be forbidden");
    }
    let line = format!(
        "ping -c 3 -W 1 {REMOTE}; ping -c 1 -W 1 {REMOTE}; ping -c 1 -W 5 10.0.2.2 >/dev/null && echo gateway"
    );
    let outcome = host.run(&[], Root::Busybox, &["sh", "-c", &line]);
    assert!(outcome.stdout.ends_with("gateway\n"), "{outcome}");
    let warnings = outcome.stderr.matches("net.ipv4.ping_group_range").count();
    assert_eq!(warnings, 1, "{outcome}");
    let quiet = host.run(&["-q"], Root::Busybox, &["sh", "-c", &line]);
    assert!(!quiet.stderr.contains("ping_group_range"), "{quiet}");
}

fn traceroute_shows_the_way(host: &Host) {
    let seen = host.sh(&[], &format!("traceroute -n -q 1 -w 3 -m 5 {REMOTE}"));
    let hops: Vec<&str> = seen.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(hops, ["10.0.2.2", &ROUTER.to_string(), &REMOTE.to_string()], "{seen}");
}
