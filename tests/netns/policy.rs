//! What a guest may not reach: the host's loopback and its link, however they are spelled.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::lab::Host;
use crate::services::{Service, echo, tcp, udp_echo};

const CONNECT: &str = include_str!("../guest/connect.py");
const RAW_SYN: &str = include_str!("../guest/raw_syn.py");
const UDP: &str = include_str!("../guest/udp.py");
const PORT: u16 = 7777;

over_links![
    raw_frames_reach_no_service_of_the_host,
    raw_frames_reach_the_allowed_service_alone,
    ordinary_connections_are_refused_at_once,
];
over_any_link![
    gateway_stands_for_an_allowed_service,
    host_loopback_opens_all_of_it,
    metadata_service_is_refused,
    refusal_is_logged,
    abstract_sockets_of_the_host_are_out_of_reach,
];

/// Services on every address of the host.
struct Loopback {
    tcp4: Service,
    tcp6: Service,
    udp4: Service,
    udp6: Service,
    other_port: Service,
}

fn raw_frames_reach_no_service_of_the_host(host: &Host) {
    let services = Loopback::new(host);
    flood(host, &[]);
    assert_eq!(services.met(), [0; 5], "tcp4 tcp6 udp4 udp6 other");
}

fn raw_frames_reach_the_allowed_service_alone(host: &Host) {
    let services = Loopback::new(host);
    flood(host, &["--allow-host", &format!("127.0.0.1:{PORT}")]);
    let [tcp4, tcp6, _, udp6, other] = services.met();
    assert!(tcp4 > 0);
    assert_eq!([tcp6, udp6, other], [0; 3], "tcp6 udp6 other");
}

fn ordinary_connections_are_refused_at_once(host: &Host) {
    let services = Loopback::new(host);
    let port = PORT.to_string();
    let targets = ["10.0.2.2", "10.0.2.3", "fd00::2", "fd00::3", "64:ff9b::127.0.0.1", "0.0.0.1"];
    let args = targets.iter().flat_map(|addr| [*addr, &port]);
    let seen = host.python(&[], CONNECT, &["2"].into_iter().chain(args).collect::<Vec<_>>());
    for line in seen.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        assert!(!["connected", "reset", "silence"].contains(&fields[2]), "not refused: {line}");
        assert!(fields[3].parse::<u32>().is_ok_and(|ms| ms < 900), "slow: {line}");
    }
    assert_eq!(services.met(), [0; 5]);
}

fn gateway_stands_for_an_allowed_service(host: &Host) {
    let _services = Loopback::new(host);
    let (port, other) = (PORT.to_string(), (PORT + 1).to_string());
    let options = ["--allow-host", "127.0.0.1:7777", "--allow-host", "[::1]:7777"];
    let targets = ["5", "10.0.2.2", &port, "fd00::2", &port, "10.0.2.2", &other];
    let seen = host.python(&options, CONNECT, &targets);
    let results: Vec<&str> = seen.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    assert_eq!(results[..2], ["connected", "connected"], "{seen}");
    assert_ne!(results[2], "connected", "{seen}");
}

fn host_loopback_opens_all_of_it(host: &Host) {
    let _services = Loopback::new(host);
    let (port, other) = (PORT.to_string(), (PORT + 1).to_string());
    let targets = ["5", "10.0.2.2", &port, "fd00::2", &port, "10.0.2.2", &other];
    let seen = host.python(&["--host-loopback"], CONNECT, &targets);
    assert_eq!(seen.matches(" connected ").count(), 3, "{seen}");
}

fn metadata_service_is_refused(host: &Host) {
    let add = "addr add 169.254.169.254/32 dev lo\n";
    crate::lab::ip_batch(host.space(), add).expect("an address");
    let service = tcp(host.space(), (Ipv4Addr::new(169, 254, 169, 254), 80), echo);
    let seen = host.python(&[], CONNECT, &["3", "169.254.169.254", "80"]);
    assert!(!seen.contains("connected") && !seen.contains("silence"), "{seen}");
    assert_eq!(service.met(), 0);
    let seen = host.python(&["--allow-host", "169.254.169.254:80"], CONNECT, &["3", "169.254.169.254", "80"]);
    assert!(seen.contains(" connected "), "{seen}");
}

fn refusal_is_logged(host: &Host) {
    let guest = host.start_python(&["--verbose", "--verbose"], UDP, &["send", "169.254.1.1", "5353"]);
    let outcome = guest.wait();
    assert!(outcome.stderr.contains("169.254.1.1"), "{outcome}");
    assert!(!outcome.stdout.contains("silence"), "{outcome}");
}

fn abstract_sockets_of_the_host_are_out_of_reach(host: &Host) {
    let listener = host.space().within(|| {
        use std::os::linux::net::SocketAddrExt;
        let addr = std::os::unix::net::SocketAddr::from_abstract_name("rnet-test").expect("a short name");
        std::os::unix::net::UnixListener::bind_addr(&addr).expect("a free name")
    });
    let program = "import socket
try: socket.socket(socket.AF_UNIX).connect('\\0rnet-test'); print('reached')
except ConnectionRefusedError: print('refused')";
    assert_eq!(host.python(&[], program, &[]), "refused\n");
    drop(listener);
}

impl Loopback {
    fn new(host: &Host) -> Self {
        let space = host.space();
        Self {
            tcp4: tcp(space, (Ipv4Addr::UNSPECIFIED, PORT), echo),
            tcp6: tcp(space, (Ipv6Addr::UNSPECIFIED, PORT), echo),
            udp4: udp_echo(space, (Ipv4Addr::UNSPECIFIED, PORT)),
            udp6: udp_echo(space, (Ipv6Addr::UNSPECIFIED, PORT)),
            other_port: tcp(space, (Ipv4Addr::UNSPECIFIED, PORT + 1), echo),
        }
    }

    fn met(&self) -> [usize; 5] {
        [&self.tcp4, &self.tcp6, &self.udp4, &self.udp6, &self.other_port].map(Service::met)
    }
}

/// Sends the raw frames from a guest and waits until rnet has seen them all.
fn flood(host: &Host, options: &[&str]) {
    let guest = host.start_python(options, RAW_SYN, &[&PORT.to_string()]);
    assert_eq!(guest.wait().success(), "sent\n");
}
